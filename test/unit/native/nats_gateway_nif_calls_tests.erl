%% The benchmark of NIF calls, which `make bench' loads into a node. Nothing else compiles it.
-module(nats_gateway_nif_calls_tests).

-include_lib("eunit/include/eunit.hrl").

run_test_() ->
    {timeout, 60, fun() ->
        Source = "native/bench/nif_calls.erl",
        {ok, Module, Beam} = compile:file(Source, [binary, return_errors, {i, "erlang_src"}]),
        {module, Module} = code:load_binary(Module, Source, Beam),
        try
            Calls = Module:run(1),
            ?assertEqual(8, length(Calls)),
            [?assertMatch({[_ | _], Microseconds} when Microseconds > 0.0, Call) || Call <- Calls]
        after
            code:delete(Module),
            code:purge(Module)
        end
    end}.
