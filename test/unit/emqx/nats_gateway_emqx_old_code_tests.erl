-module(nats_gateway_emqx_old_code_tests).

-include_lib("eunit/include/eunit.hrl").

%% Modules of ours that no process runs in.
-define(REPLACED, [nats_gateway_turns, nats_gateway_emqx_topics]).

old_code_is_removed_test() ->
    _ = application:load(nats_gateway),
    lists:foreach(fun replace/1, ?REPLACED),
    ?assertEqual([true, true], [erlang:check_old_code(Module) || Module <- ?REPLACED]),
    {ok, Pid} = nats_gateway_emqx_old_code:start_link(0),
    Monitor = monitor(process, Pid),
    receive
        {'DOWN', Monitor, process, Pid, Reason} -> ?assertEqual(normal, Reason)
    after 5000 -> error(still_there)
    end,
    ?assertEqual([false, false], [erlang:check_old_code(Module) || Module <- ?REPLACED]).

without_old_code_there_is_no_process_test() ->
    _ = application:load(nats_gateway),
    {ok, Modules} = application:get_key(nats_gateway, modules),
    lists:foreach(fun code:soft_purge/1, Modules),
    ?assertEqual(ignore, nats_gateway_emqx_old_code:start_link(0)).

replace(Module) ->
    {module, Module} = code:ensure_loaded(Module),
    true = code:soft_purge(Module),
    {module, Module} = code:load_file(Module).
