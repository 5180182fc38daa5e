%% Requests that the gateway answers itself. What clients see of them is in
%% nats_gateway_channel_tests.
-module(nats_gateway_requests_tests).

-include("nats_gateway.hrl").
-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_requests, [answer/4, ask_server/3, ask_store/4, client_event/4, feed/3, of_system/3]).

-export([ask_server/1]).

%% A host that knows servers, but has no store.
ask_server(Request = #{name := <<"PING">>}) ->
    self() ! {asked, Request},
    ok;
ask_server(_) ->
    no_responders.

client(Access) -> #{config => #{system => Access, kv => #{}}}.

session() -> #{mountpoint => <<>>, clientid => <<"c">>, proven_user => <<"anne">>}.

subscriptions() ->
    New = nats_gateway_subscriptions:new(),
    {new_key, Plain} = nats_gateway_subscriptions:add(<<"1">>, <<"i">>, undefined, {undefined, <<"i">>}, New),
    {new_key, Subs} = nats_gateway_subscriptions:add(<<"2">>, <<"q">>, <<"g">>, {<<"g">>, <<"q">>}, Plain),
    Subs.

only_those_with_access_ask_servers_test() ->
    Access = #{users => [<<"anne">>], accounts => []},
    ?assertEqual({server, <<"PING">>}, of_system(<<"SERVER.PING">>, client(Access), session())),
    ?assertEqual(none, of_system(<<"SERVER.PING">>, client(Access), maps:remove(proven_user, session()))).

everybody_asks_for_itself_test() ->
    Nobody = client(#{users => [], accounts => []}),
    ?assertEqual(user_info, of_system(<<"USER.INFO">>, Nobody, session())),
    ?assertEqual(none, of_system(<<"USER.INFO.x">>, Nobody, session())),
    ?assertEqual(none, of_system(<<"ACCOUNT.PING">>, Nobody, session())).

a_request_has_its_requester_test() ->
    Asked = #{name => <<"PING">>, max => 9, by => <<"anne">>},
    ?assertEqual(pass, ask_server(?MODULE, #pub{payload = <<"p">>, reply_topic = <<"i">>}, Asked)),
    Self = self(),
    receive
        {asked, Request} ->
            ?assertEqual(Asked#{body => <<"p">>, requester => Self, reply_topic => <<"i">>}, Request)
    after 0 -> error(not_asked)
    end.

nobody_answers_test_() ->
    Pub = #pub{payload = <<>>, reply_topic = <<"i">>},
    Ping = #{name => <<"PING">>, max => 9, by => <<>>},
    [
        %% another server
        ?_assertEqual(no_responders, ask_server(?MODULE, Pub, Ping#{name := <<"N.VARZ">>})),
        %% a reply subject that is no topic
        ?_assertEqual(no_responders, ask_server(?MODULE, Pub#pub{reply_topic = invalid}, Ping)),
        %% a host without the callback
        ?_assertEqual(no_responders, ask_server(nats_gateway_connection_tests, Pub, Ping)),
        ?_assertEqual({no_responders, state}, ask_store(?MODULE, Pub, client(#{}), state))
    ].

only_a_plain_subscription_gets_an_answer_test() ->
    Subs = subscriptions(),
    Delivery = #delivery{key = {undefined, <<"i">>}, topic = <<"i">>, headers = undefined, payload = <<"x">>},
    ?assertEqual([Delivery], answer(<<"i">>, undefined, <<"x">>, Subs)),
    ?assertEqual([], answer(<<"q">>, undefined, <<"x">>, Subs)),
    ?assertEqual([], answer(<<"j">>, undefined, <<"x">>, Subs)),
    ?assertEqual({ok, []}, feed(<<"i">>, [], Subs)),
    ?assertEqual(none, feed(<<"q">>, [], Subs)).

an_event_goes_to_each_filter_that_matches_test() ->
    ?assertEqual([], client_event(<<"$SYS.ACCOUNT.A.CONNECT">>, <<>>, <<>>, nats_gateway_client_events:new())).
