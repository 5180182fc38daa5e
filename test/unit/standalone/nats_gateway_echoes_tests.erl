-module(nats_gateway_echoes_tests).

-include_lib("eunit/include/eunit.hrl").

-define(ECHOES, nats_gateway_echoes).
-define(MAX, 400).

subscribed(Filters) ->
    lists:foldl(fun ?ECHOES:subscribed/2, ?ECHOES:new(), Filters).

%% As many as may go, and the verdict on the next one.
published(Topic, Echoes) -> published(Topic, Echoes, 0).

published(Topic, Echoes, Count) ->
    case ?ECHOES:publish(Topic, Echoes) of
        {send, NEchoes} when Count < 10 * ?MAX -> published(Topic, NEchoes, Count + 1);
        {Verdict, NEchoes} -> {Count, Verdict, NEchoes}
    end.

what_nobody_here_gets_is_not_counted_test() ->
    [
        begin
            ?assertMatch({10 * ?MAX, send, _}, published(<<"b">>, Echoes)),
            ?assertNot(?ECHOES:is_under_way(element(3, published(<<"b">>, Echoes))))
        end
     || Echoes <- [
            ?ECHOES:new(),
            subscribed([<<"a">>]),
            ?ECHOES:unsubscribed(<<"b">>, subscribed([<<"a">>, <<"b">>]))
        ]
    ].

copies_are_bounded_test_() ->
    [
        {lists:flatten(lists:join(" ", [binary_to_list(F) || F <- Filters])),
            ?_assertMatch({Count, ping, _}, published(<<"a/b">>, subscribed(Filters)))}
     || {Filters, Count} <- [
            {[<<"a/b">>], ?MAX},
            {[<<"a/b">>, <<"c">>], ?MAX},
            {[<<"a/b">>, <<"a/+">>, <<"#">>], ?MAX div 3},
            %% a plain subscription and one of a group
            {[<<"a/b">>, <<"a/b">>], ?MAX div 2}
        ]
    ].

%% It would never go otherwise.
more_copies_than_there_may_be_test() ->
    Filters = [<<"a/+/", (integer_to_binary(N))/binary>> || N <- lists:seq(1, ?MAX)],
    Topics = [<<"a/#">>, <<"#">> | Filters],
    Many = lists:foldl(
        fun(_, Acc) -> ?ECHOES:subscribed(<<"a/x/1">>, Acc) end,
        subscribed(Topics),
        lists:seq(1, ?MAX)
    ),
    {1, ping, Full} = published(<<"a/x/1">>, Many),
    {ok, Again} = ?ECHOES:answered(1, ?ECHOES:pinged(7, Full)),
    ?assertMatch({wait, _}, ?ECHOES:publish(<<"a/x/1">>, Again)),
    ?assertMatch({send, _}, ?ECHOES:publish(<<"a/x/1">>, ?ECHOES:arrived(?MAX + 3, Again))).

what_comes_back_makes_room_test() ->
    {?MAX, ping, Full} = published(<<"a">>, subscribed([<<"a">>])),
    Pinged = ?ECHOES:pinged(1, Full),
    ?assertMatch({wait, _}, ?ECHOES:publish(<<"a">>, Pinged)),
    ?assertMatch({wait, _}, ?ECHOES:publish(<<"a">>, ?ECHOES:arrived(?MAX div 2 - 1, Pinged))),
    {Count, ping, _} = published(<<"a">>, ?ECHOES:arrived(?MAX div 2, Pinged)),
    ?assertEqual(?MAX div 2, Count),
    %% also what others have published
    ?assertMatch({?MAX, ping, _}, published(<<"a">>, ?ECHOES:arrived(10 * ?MAX, Pinged))).

%% The answer to the first PINGREQ says nothing of what waits for the client.
what_never_comes_makes_room_test() ->
    {?MAX, ping, Full} = published(<<"a">>, subscribed([<<"a">>])),
    First = ?ECHOES:pinged(5, Full),
    {ok, Other} = ?ECHOES:answered(4, First),
    {ping_soon, Moment} = ?ECHOES:answered(5, Other),
    ?assertMatch({wait, _}, ?ECHOES:publish(<<"a">>, Moment)),
    {ping, Due} = ?ECHOES:ping_again(Moment),
    Second = ?ECHOES:pinged(6, Due),
    ?assertMatch({wait, _}, ?ECHOES:publish(<<"a">>, Second)),
    {ok, Done} = ?ECHOES:answered(6, Second),
    ?assertNot(?ECHOES:is_under_way(Done)),
    ?assertMatch({?MAX, ping, _}, published(<<"a">>, Done)).

%% Whoever goes on meanwhile does not take a late answer for one to what it has sent since.
a_late_answer_is_none_test() ->
    {?MAX, ping, Full} = published(<<"a">>, subscribed([<<"a">>])),
    {ping_soon, Moment} = ?ECHOES:answered(1, ?ECHOES:pinged(1, Full)),
    {_, ping, Again} = published(<<"a">>, ?ECHOES:arrived(?MAX, Moment)),
    {ok, Next} = ?ECHOES:ping_again(Again),
    {ok, Late} = ?ECHOES:answered(1, ?ECHOES:pinged(2, Next)),
    ?assertMatch({wait, _}, ?ECHOES:publish(<<"a">>, Late)).

settled_test() ->
    {_, ping, Full} = published(<<"a">>, subscribed([<<"a">>])),
    ?assert(?ECHOES:is_under_way(Full)),
    ?assertNot(?ECHOES:is_under_way(?ECHOES:settled(Full))).
