%% sd_notify(3): what comes out at the socket that NOTIFY_SOCKET names.
-module(nats_gateway_service_manager_tests).

-include_lib("eunit/include/eunit.hrl").

-define(VARIABLE, "NOTIFY_SOCKET").

-define(SAID, [<<"READY=1\n">>, <<"STOPPING=1\nEXTEND_TIMEOUT_USEC=12500000\n">>]).

a_path_test() ->
    nats_gateway_test_directory:in(fun(Path) ->
        Socket = Path("notify"),
        ?assertEqual(?SAID, told(Socket, Socket))
    end).

an_abstract_name_test() ->
    Name = "nats_gateway_" ++ os:getpid(),
    ?assertEqual(?SAID, told("@" ++ Name, [0 | Name])).

nobody_is_told_test_() ->
    [
        {Title, fun() -> with_variable(Value, fun nats_gateway_service_manager:ready/0) end}
     || {Title, Value} <- [{"no variable", false}, {"empty", ""}, {"no such socket", "/nowhere/socket"}]
    ].

told(Variable, Address) ->
    {ok, Socket} = gen_udp:open(0, [binary, {active, false}, {ifaddr, {local, Address}}]),
    try
        with_variable(Variable, fun() ->
            ok = nats_gateway_service_manager:ready(),
            ok = nats_gateway_service_manager:stopping(2500)
        end),
        [received(Socket), received(Socket)]
    after
        gen_udp:close(Socket)
    end.

received(Socket) ->
    {ok, {_, _, Data}} = gen_udp:recv(Socket, 0, 5000),
    Data.

with_variable(Value, Fun) ->
    _ = Value =:= false orelse os:putenv(?VARIABLE, Value),
    try
        ?assertEqual(ok, Fun())
    after
        os:unsetenv(?VARIABLE)
    end.
