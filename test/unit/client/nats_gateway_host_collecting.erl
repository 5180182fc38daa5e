%% The host of nats_gateway_connection_tests, one that takes messages together, as that of EMQX: with
%% those that it finds in the mailbox.
-module(nats_gateway_host_collecting).

-behaviour(nats_gateway_host).

-export([connect/1, ready/1, publish/3, subscribe/3, subscribe_again/3, unsubscribe/2, barrier/2]).
-export([handle_info/2, handle_messages/2, disconnect/2]).

-define(MAX, 1000).

connect(Client) -> nats_gateway_connection_tests:connect(Client).
ready(_) -> ok.
publish(Pubs, Options, Test) -> nats_gateway_connection_tests:publish(Pubs, Options, Test).
subscribe(_, _, Test) -> {ok, Test}.
subscribe_again(_, _, Test) -> {ok, [], Test}.
unsubscribe(_, Test) -> Test.
barrier(_, Test) -> {ok, Test}.
handle_info(Message, Test) -> handle_messages([Message], Test).
disconnect(_, _) -> ok.

handle_messages(Messages, Test) ->
    All = Messages ++ drain(?MAX - length(Messages)),
    {[{deliver, lists:append([Deliveries || {deliver, Deliveries} <- All])}], Test}.

drain(N) when N =< 0 ->
    [];
drain(N) ->
    receive
        {deliver, _} = Message -> [Message | drain(N - 1)]
    after 0 -> []
    end.
