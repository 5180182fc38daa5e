-module(nats_gateway_hangups_tests).

-include_lib("eunit/include/eunit.hrl").

-define(HANGUPS, nats_gateway_hangups).
-define(HOUR, 3600000).
-define(WATCHED, 300000).

key(Name) -> ?HANGUPS:key({127, 0, 0, 1}, <<"u">>, Name).

packet(Topic) -> ?HANGUPS:packet(publish, Topic).

hung_up(Evidence, Suspect, Now, Hangups) ->
    ?HANGUPS:hung_up(key(<<"n">>), Evidence, Suspect, Now, Hangups).

learned(Now, Hangups) -> ?HANGUPS:learned(key(<<"n">>), Now, Hangups).

refused(Now, Hangups) ->
    #{refused := Refused} = learned(Now, Hangups),
    lists:sort(maps:keys(Refused)).

nobody_is_suspected_at_first_test() ->
    ?assertEqual(none, learned(0, ?HANGUPS:new())).

who_is_hung_up_on_is_watched_test() ->
    One = hung_up(closed, unknown, 0, ?HANGUPS:new()),
    ?assertEqual(#{refused => #{}, watch => true}, learned(?WATCHED - 1, One)),
    ?assertEqual(#{refused => #{}, watch => false}, learned(?WATCHED, One)),
    ?assertEqual(none, learned(?HOUR, One)).

one_packet_that_is_blamed_is_refused_test() ->
    One = hung_up(blamed, packet(<<"a">>), 0, ?HANGUPS:new()),
    ?assertEqual([packet(<<"a">>)], refused(0, One)),
    ?assertEqual([packet(<<"a">>)], refused(?HOUR - 1, One)),
    ?assertEqual(none, learned(?HOUR, One)),
    %% of another client, and to subscribe, it is not
    ?assertEqual(none, ?HANGUPS:learned(key(<<"other">>), 0, One)),
    ?assertNotEqual(packet(<<"a">>), ?HANGUPS:packet(subscribe, <<"a">>)).

%% A broker that was restarted.
one_packet_is_suspected_twice_before_it_is_refused_test() ->
    One = hung_up(closed, packet(<<"a">>), 0, ?HANGUPS:new()),
    ?assertEqual([], refused(0, One)),
    ?assertEqual([], refused(1, hung_up(closed, packet(<<"b">>), 1, One))),
    %% others of the same name, when a broker ends
    ?assertEqual([], refused(0, hung_up(closed, packet(<<"a">>), 0, One))),
    Soon = hung_up(closed_again, packet(<<"a">>), ?WATCHED - 1, One),
    ?assertEqual([packet(<<"a">>)], refused(?WATCHED - 1, Soon)),
    ?assertEqual([], refused(?WATCHED, hung_up(closed_again, packet(<<"a">>), ?WATCHED, One))).

what_is_refused_stays_so_test() ->
    One = hung_up(blamed, packet(<<"a">>), 0, ?HANGUPS:new()),
    Two = hung_up(closed, packet(<<"a">>), ?HOUR, One),
    ?assertEqual([packet(<<"a">>)], refused(?HOUR, Two)),
    %% each for its own time
    Three = hung_up(blamed, packet(<<"b">>), ?HOUR - 1, One),
    ?assertEqual([packet(<<"b">>)], refused(?HOUR, Three)).

bounded_test() ->
    Many = lists:foldl(
        fun(N, Acc) -> hung_up(blamed, packet(integer_to_binary(N)), N, Acc) end,
        ?HANGUPS:new(),
        lists:seq(1, 101)
    ),
    Refused = refused(101, Many),
    ?assertEqual(100, length(Refused)),
    ?assertNot(lists:member(packet(<<"1">>), Refused)),
    Clients = lists:foldl(
        fun(N, Acc) -> ?HANGUPS:hung_up(key(integer_to_binary(N)), closed, unknown, N, Acc) end,
        ?HANGUPS:new(),
        lists:seq(1, 1001)
    ),
    ?assertEqual(none, ?HANGUPS:learned(key(<<"1">>), 1001, Clients)),
    ?assertMatch(#{}, ?HANGUPS:learned(key(<<"2">>), 1001, Clients)),
    ?assertMatch(#{}, ?HANGUPS:learned(key(<<"1001">>), 1001, Clients)).
