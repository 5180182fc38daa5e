%% For tests: the side of a broker that does what the test says.
-module(nats_gateway_scripted_broker).

-export([listen/0, packet/1, free_port/0]).

-define(WAIT, 5000).

listen() ->
    {ok, Listen} = gen_tcp:listen(0, [
        binary, {active, false}, {ip, {127, 0, 0, 1}}, {nodelay, true}
    ]),
    {ok, Port} = inet:port(Listen),
    {Listen, Port}.

%% The next packet of the client; those here are shorter than 128 bytes.
packet(Socket) ->
    {ok, <<First, Length>>} = gen_tcp:recv(Socket, 2, ?WAIT),
    {ok, Body} =
        case Length of
            0 -> {ok, <<>>};
            _ -> gen_tcp:recv(Socket, Length, ?WAIT)
        end,
    <<First, Length, Body/binary>>.

free_port() ->
    {ok, Listen} = gen_tcp:listen(0, [{ip, {127, 0, 0, 1}}]),
    {ok, Port} = inet:port(Listen),
    ok = gen_tcp:close(Listen),
    Port.
