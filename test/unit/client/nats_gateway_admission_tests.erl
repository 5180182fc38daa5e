-module(nats_gateway_admission_tests).

-include("nats_gateway.hrl").
-include("client/nats_gateway_channel.hrl").
-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_admission, [judge/2, deadline/1, has_room/3, until_session_ends/3, user/2]).

client() ->
    #{
        listener => <<"tcp:default">>,
        peername => {{127, 0, 0, 1}, 4000},
        sockname => {{127, 0, 0, 1}, 4222},
        connect => #{user => <<"given">>}
    }.

identity() ->
    #{
        method => user,
        username => <<"known">>,
        rules => #{
            publish => #{allow => all, deny => []},
            subscribe => #{allow => all, deny => [<<"secret">>]},
            allow_responses => undefined
        },
        expires => infinity,
        max_payload => 10,
        max_subscriptions => 2
    }.

an_accepted_client_test() ->
    {ok, Client, Grant} = judge({ok, identity()}, client()),
    ?assertMatch(#{login := #{username := <<"known">>}}, Client),
    %% The rules are the channel's.
    ?assertNot(is_map_key(rules, maps:get(login, Client))),
    ?assertMatch(#grant{max_payload = 10, max_subscriptions = 2, deadline = infinity}, Grant),
    ?assertNotEqual(none, Grant#grant.permissions),
    ?assertMatch(#{user := <<"known">>, account := <<"$G">>, expires := infinity}, user(Client, Grant)).

%% Nothing of an earlier login stays.
a_client_that_is_left_to_the_broker_test() ->
    {ok, Accepted, _} = judge({ok, identity()}, client()),
    {ok, Client, Grant} = judge(ignore, Accepted),
    ?assertEqual(client(), Client),
    ?assertEqual(#grant{}, Grant),
    ?assertMatch(#{user := <<"given">>, rules := undefined}, user(Client, Grant)).

refusals_test_() ->
    [
        ?_assertEqual({error, Reason}, judge(Verdict, client()))
     || {Verdict, Reason} <- [
            {{error, {user, wrong_password}}, authorization_violation},
            {{error, {jwt, {expired, <<"since yesterday">>}}}, authorization_violation},
            {busy, too_many_logins}
        ]
    ].

the_end_of_a_login_test() ->
    {ok, Client, Grant} = judge({ok, (identity())#{expires := {1000, some_reason}}}, client()),
    Left = deadline(Grant) - erlang:monotonic_time(millisecond),
    ?assert(Left > 0 andalso Left =< 1000),
    ?assertMatch(#{expires := Ms} when Ms =< 1000, user(Client, Grant)),
    %% The broker knows nothing better.
    ?assertEqual(Grant, until_session_ends(#{expires => 1}, Client, Grant)).

the_end_of_a_session_test() ->
    Now = erlang:monotonic_time(millisecond),
    #grant{deadline = {At, Reason}} = Grant = until_session_ends(#{expires => 500}, client(), #grant{}),
    ?assertEqual(user_authentication_expired, Reason),
    ?assert(At >= Now + 500),
    %% A second CONNECT does not make it longer.
    ?assertEqual(Grant, until_session_ends(#{expires => 500}, client(), Grant)),
    ?assertEqual(#grant{}, until_session_ends(#{}, client(), #grant{})).

room_for_subscriptions_test_() ->
    {ok, LoggedIn, _} = judge({ok, identity()}, client()),
    [
        ?_assertEqual(Expected, has_room(Count, 2, Client))
     || {Client, Count, Expected} <- [
            {client(), 0, true},
            {client(), 2, true},
            {client(), 3, false},
            {LoggedIn, 0, true},
            {LoggedIn, 1, true},
            {LoggedIn, 2, false},
            {LoggedIn, 3, false}
        ]
    ] ++ [?_assert(has_room(1000, infinity, LoggedIn))].

names_test_() ->
    [
        ?_assertMatch(#{user := Name}, user((client())#{login => Login}, #grant{}))
     || {Login, Name} <- [
            {#{method => nkey, nkey => <<"UKEY">>, username => <<"u">>}, <<"UKEY">>},
            {#{method => token, username => <<"token">>}, <<"[REDACTED]">>},
            {#{method => user, username => <<"u">>}, <<"u">>}
        ]
    ].
