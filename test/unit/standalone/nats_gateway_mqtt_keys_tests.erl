%% Which subscriptions a message is for, with the quirks of brokers.
-module(nats_gateway_mqtt_keys_tests).

-include_lib("eunit/include/eunit.hrl").

-define(KEYS, nats_gateway_mqtt_keys).

-define(PLAIN, {undefined, <<"t/#">>}).
-define(OTHER, {undefined, <<"t/+">>}).
-define(GROUP, {<<"g">>, <<"t/a">>}).
-define(GROUP_TOO, {<<"h">>, <<"t/a">>}).

%% With the identifiers 1, 2, ...
keys(Keys) ->
    lists:foldl(
        fun(Key, Acc) ->
            {added, _, NAcc} = ?KEYS:add(Key, Acc),
            NAcc
        end,
        ?KEYS:new(1),
        Keys
    ).

each_key_has_an_identifier_test() ->
    {added, 4, One} = ?KEYS:add(?PLAIN, ?KEYS:new(4)),
    {added, 5, Two} = ?KEYS:add(?GROUP, One),
    {known, 4, Two} = ?KEYS:add(?PLAIN, Two),
    ?assertEqual([?PLAIN, ?GROUP, undefined], [?KEYS:key(Id, Two) || Id <- [4, 5, 6]]),
    ?assert(?KEYS:is_member(?PLAIN, Two)),
    ?assertNot(?KEYS:is_member(?OTHER, Two)),
    ?assert(?KEYS:is_current(?PLAIN, 4, Two)),
    ?assertNot(?KEYS:is_current(?PLAIN, 5, Two)).

%% What was sent before the broker confirms is for it; its identifier is not used again.
left_and_forgotten_test() ->
    {1, Left} = ?KEYS:leave(?PLAIN, keys([?PLAIN])),
    ?assertNot(?KEYS:is_member(?PLAIN, Left)),
    ?assertEqual(?PLAIN, ?KEYS:key(1, Left)),
    ?assertEqual(error, ?KEYS:leave(?PLAIN, Left)),
    {added, 2, Again} = ?KEYS:add(?PLAIN, Left),
    Forgotten = ?KEYS:forget(1, Again),
    ?assertEqual([undefined, ?PLAIN], [?KEYS:key(Id, Forgotten) || Id <- [1, 2]]).

%% Those that are subscribed now, and not those of groups.
plain_filters_test() ->
    Plain = fun(Keys) -> lists:sort(?KEYS:plain_filters(Keys)) end,
    ?assertEqual([], Plain(?KEYS:new(1))),
    ?assertEqual([], Plain(keys([?GROUP, ?GROUP_TOO]))),
    All = keys([?PLAIN, ?GROUP, ?OTHER, ?GROUP_TOO, {undefined, <<"t/a">>}]),
    ?assertEqual([<<"t/#">>, <<"t/+">>, <<"t/a">>], Plain(All)),
    {1, Left} = ?KEYS:leave(?PLAIN, All),
    ?assertEqual([<<"t/+">>, <<"t/a">>], Plain(Left)),
    {added, 6, Again} = ?KEYS:add(?PLAIN, Left),
    ?assertEqual([<<"t/#">>, <<"t/+">>, <<"t/a">>], Plain(?KEYS:forget(1, Again))).

identifiers_begin_again_test() ->
    {added, 268435455, One} = ?KEYS:add(?PLAIN, ?KEYS:new(268435455)),
    {added, 1, Two} = ?KEYS:add(?OTHER, One),
    {added, 2, _} = ?KEYS:add(?GROUP, Two).

receivers_test_() ->
    [
        ?_assertEqual(Expected, element(1, ?KEYS:receivers(Ids, <<"t/a">>, Quirks, keys(Keys))))
     || {Keys, Ids, Quirks, Expected} <- [
            {[?PLAIN, ?OTHER, ?GROUP], [2], [], [?OTHER]},
            {[?PLAIN, ?OTHER, ?GROUP], [3, 1, 3], [], [?PLAIN, ?GROUP]},
            {[?PLAIN, ?OTHER, ?GROUP], [9], [], []},
            %% not said: all plain ones that match, or one group
            {[?PLAIN, ?OTHER, ?GROUP], [], [no_identifiers], [?PLAIN, ?OTHER]},
            {[?GROUP], [], [no_identifiers], [?GROUP]},
            {[{undefined, <<"x">>}], [], [no_identifiers], []},
            %% not said where it is for a group
            {[?PLAIN, ?GROUP], [], [no_shared_identifiers], [?GROUP]},
            {[?PLAIN, ?GROUP], [1], [no_shared_identifiers], [?PLAIN]},
            %% one for all plain ones
            {[?PLAIN, ?OTHER, ?GROUP], [1], [merges], [?PLAIN, ?OTHER]},
            {[?PLAIN, ?OTHER, ?GROUP], [3], [merges], [?GROUP]}
        ]
    ].

groups_take_turns_test() ->
    Keys = keys([?GROUP, ?GROUP_TOO]),
    {[First], One} = ?KEYS:receivers([], <<"t/a">>, [no_identifiers], Keys),
    {[Second], Two} = ?KEYS:receivers([], <<"t/a">>, [no_identifiers], One),
    {[First], _} = ?KEYS:receivers([], <<"t/a">>, [no_identifiers], Two),
    ?assertEqual([?GROUP, ?GROUP_TOO], lists:sort([First, Second])).
