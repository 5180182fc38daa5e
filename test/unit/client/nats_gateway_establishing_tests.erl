-module(nats_gateway_establishing_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_establishing, [new/0, start/2, next/1, begins/2, ends/2, worker/1, agreed/2]).

-define(PEER, {{127, 0, 0, 1}, 1}).

steps(Establishing) ->
    case next(Establishing) of
        done -> [];
        {Step, Left} -> [Step | steps(Left)]
    end.

without_tls_there_is_only_info_test() -> ?assertEqual([peername, info], steps(start(#{}, new()))).

%% The peer is another one behind the PROXY header.
the_peer_is_looked_at_again_behind_a_proxy_header_test() ->
    Options = #{proxy_protocol => 1000},
    ?assertEqual([peername, proxy, peername, info], steps(start(Options, new()))).

a_step_has_the_socket_and_may_find_more_to_do_test() ->
    Begun = begins(self(), new()),
    ?assertEqual(self(), worker(Begun)),
    Ended = ends([{websocket, #{}}], Begun),
    ?assertEqual(undefined, worker(Ended)),
    ?assertEqual([{websocket, #{}}], steps(Ended)).

the_request_may_know_the_address_test() ->
    Known = nats_gateway_establishing:peername(?PEER, new()),
    Agreed = agreed(#{address => {10, 0, 0, 1}}, Known),
    ?assertEqual({{10, 0, 0, 1}, 1}, nats_gateway_establishing:peername(Agreed)).
