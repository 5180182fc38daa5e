-module(nats_gateway_subscriptions_tests).

-include_lib("eunit/include/eunit.hrl").
-include("nats_gateway.hrl").

-import(nats_gateway_subscriptions, [
    new/0, add/5, remove/2, limit/3, joined/2, unsubscribed/2, begin_anew/1, reject/2, deliver/4, plain_sid/2, keys/1,
    count/1, bytes/1, member/2
]).

-define(PLAIN(Filter), {undefined, Filter}).

plain(Sid, Filter, S) ->
    {_, NS} = add(Sid, Filter, undefined, ?PLAIN(Filter), S),
    NS.

member_of(Group, Sid, Filter, S) -> joined({Group, Filter}, joining(Group, Sid, Filter, S)).

joining(Group, Sid, Filter, S) ->
    {_, NS} = add(Sid, Filter, Group, {Group, Filter}, S),
    NS.

%% By a broker that does not tell which messages are copies of one.
deliver(Key, Topic, S) -> deliver(Key, Topic, undefined, S).

%% Copies in the order in which they come: who gets each, and the keys that are not used any more.
copies(Copies, S) ->
    {Taken, {Unused, NS}} = lists:mapfoldl(
        fun({Key, Topic, Id}, {Keys, Acc}) ->
            {Sids, More, NAcc} = deliver(Key, Topic, Id, Acc),
            {Sids, {Keys ++ More, NAcc}}
        end,
        {[], S},
        Copies
    ),
    {Taken, Unused, NS}.

sids(Key, Topic, S) ->
    {Sids, _, _} = deliver(Key, Topic, S),
    lists:sort(Sids).

%% Delivers N copies, and counts who got how many.
turns(Key, Topic, N, S) -> turns(Key, Topic, N, S, #{}).

turns(_, _, 0, _, Counts) ->
    Counts;
turns(Key, Topic, N, S, Counts) ->
    {Sids, _, NS} = deliver(Key, Topic, S),
    NCounts = lists:foldl(
        fun(Sid, Acc) -> maps:update_with(Sid, fun(C) -> C + 1 end, 1, Acc) end, Counts, Sids
    ),
    turns(Key, Topic, N - 1, NS, NCounts).

%% Whatever way a sid leaves, its bytes leave with it.
bytes_test() ->
    ?assertEqual(0, bytes(new())),
    Subs = member_of(<<"q">>, <<"3">>, <<"c">>, plain(<<"2">>, <<"b">>, plain(<<"1">>, <<"a">>, new()))),
    Longer = plain(<<"4">>, binary:copy(<<"x">>, 100), Subs),
    ?assertEqual(bytes(Subs) div 3 + 198, bytes(Longer) - bytes(Subs)),
    {_, S1} = limit(<<"1">>, 0, Longer),
    {_, S2} = reject(?PLAIN(<<"b">>), S1),
    {[<<"3">>], _, S3} = deliver({<<"q">>, <<"c">>}, <<"c">>, element(2, limit(<<"3">>, 1, S2))),
    ?assertEqual(0, bytes(remove(<<"4">>, S3))).

the_broker_is_asked_once_per_key_test() ->
    Key = ?PLAIN(<<"a">>),
    {new_key, S1} = add(<<"1">>, <<"a">>, undefined, Key, new()),
    {known_key, S2} = add(<<"2">>, <<"a">>, undefined, Key, S1),
    {new_key, S3} = add(<<"3">>, <<"a">>, <<"q">>, {<<"q">>, <<"a">>}, S2),
    ?assertEqual([<<"1">>, <<"2">>], sids(Key, <<"a">>, S3)),
    ?assertEqual([<<"3">>], sids({<<"q">>, <<"a">>}, <<"a">>, S3)),
    {[], S4} = limit(<<"1">>, 1, S3),
    {[], S5} = limit(<<"1">>, 0, S4),
    {[Key], S6} = limit(<<"2">>, 0, S5),
    {[{<<"q">>, <<"a">>}], S7} = limit(<<"3">>, 0, S6),
    ?assertEqual({0, []}, {count(S7), keys(S7)}).

removing_an_unknown_sid_changes_nothing_test() ->
    S = plain(<<"1">>, <<"a">>, new()),
    ?assertEqual(S, remove(<<"2">>, S)),
    ?assertEqual({[], S}, limit(<<"2">>, 1, S)).

an_unknown_key_is_delivered_to_nobody_test() ->
    S = plain(<<"1">>, <<"a">>, new()),
    ?assertMatch({[], [], S}, deliver(?PLAIN(<<"b">>), <<"b">>, S)),
    ?assertMatch({[], [], S}, deliver({<<"q">>, <<"a">>}, <<"a">>, S)).

%% docs/protocol.md section 4: the max counts deliveries since the SUB.
max_counts_from_the_subscription_test() ->
    Key = ?PLAIN(<<"a">>),
    S0 = plain(<<"1">>, <<"a">>, new()),
    {_, [], S1} = deliver(Key, <<"a">>, S0),
    %% a second sid on the same key counts from its own start
    S2 = plain(<<"2">>, <<"a">>, S1),
    {[], S3} = limit(<<"1">>, 2, S2),
    {[], S4} = limit(<<"2">>, 2, S3),
    {Both, [], S5} = deliver(Key, <<"a">>, S4),
    ?assertEqual([<<"1">>, <<"2">>], lists:sort(Both)),
    ?assertNot(member(<<"1">>, S5)),
    {[<<"2">>], [Key], S6} = deliver(Key, <<"a">>, S5),
    ?assertEqual(0, count(S6)).

max_reached_already_removes_at_once_test() ->
    Key = ?PLAIN(<<"a">>),
    {_, [], S1} = deliver(Key, <<"a">>, plain(<<"1">>, <<"a">>, new())),
    ?assertMatch({[Key], _}, limit(<<"1">>, 1, S1)),
    ?assertMatch({[Key], _}, limit(<<"1">>, 0, S1)),
    ?assertMatch({[], _}, limit(<<"1">>, 2, S1)).

a_later_max_replaces_the_first_test() ->
    Key = ?PLAIN(<<"a">>),
    {[], S1} = limit(<<"1">>, 1, plain(<<"1">>, <<"a">>, new())),
    {[], S2} = limit(<<"1">>, 2, S1),
    {[<<"1">>], [], S3} = deliver(Key, <<"a">>, S2),
    {[<<"1">>], [Key], _} = deliver(Key, <<"a">>, S3).

members_of_a_group_take_turns_test() ->
    Key = {<<"q">>, <<"a">>},
    S = lists:foldl(
        fun(Sid, Acc) -> member_of(<<"q">>, Sid, <<"a">>, Acc) end,
        new(),
        [<<"1">>, <<"2">>, <<"3">>]
    ),
    ?assertEqual(
        #{<<"1">> => 10, <<"2">> => 10, <<"3">> => 10}, turns(Key, <<"a">>, 30, S)
    ).

a_member_with_a_max_leaves_the_rest_to_the_others_test() ->
    Key = {<<"q">>, <<"a">>},
    S0 = member_of(<<"q">>, <<"2">>, <<"a">>, member_of(<<"q">>, <<"1">>, <<"a">>, new())),
    {[], S1} = limit(<<"1">>, 3, S0),
    ?assertEqual(#{<<"1">> => 3, <<"2">> => 17}, turns(Key, <<"a">>, 20, S1)).

%% docs/protocol.md section 4: one group per queue name, whatever the filters. The broker sends one
%% copy per filter.
one_copy_for_a_group_over_several_filters_test() ->
    Narrow = {<<"q">>, <<"a/b">>},
    Wide = {<<"q">>, <<"a/+">>},
    S = member_of(<<"q">>, <<"2">>, <<"a/+">>, member_of(<<"q">>, <<"1">>, <<"a/b">>, new())),
    Copies = [Key || Key <- [Narrow, Wide], sids(Key, <<"a/b">>, S) =/= []],
    ?assertMatch([_], Copies),
    ?assertEqual([], sids(Narrow, <<"a/c">>, S)),
    ?assertEqual([<<"2">>], sids(Wide, <<"a/c">>, S)),
    [Key] = Copies,
    ?assertEqual(#{<<"1">> => 5, <<"2">> => 5}, turns(Key, <<"a/b">>, 10, S)),
    %% another group is not touched
    S2 = member_of(<<"p">>, <<"3">>, <<"a/b">>, S),
    ?assertEqual([<<"3">>], sids({<<"p">>, <<"a/b">>}, <<"a/b">>, S2)).

-define(NARROW, {<<"q">>, <<"a/b">>}).
-define(WIDE, {<<"q">>, <<"a/+">>}).

narrow() -> member_of(<<"q">>, <<"1">>, <<"a/b">>, new()).

both() -> member_of(<<"q">>, <<"2">>, <<"a/+">>, narrow()).

%% What the broker has sent before it knew the second filter comes for the first one only; the
%% second one would be the one that counts.
no_message_is_lost_while_a_filter_joins_test_() ->
    S = joining(<<"q">>, <<"2">>, <<"a/+">>, narrow()),
    Before = [{?NARROW, <<"a/b">>, Id} || Id <- [<<"m1">>, <<"m2">>]],
    After = [{Key, <<"a/b">>, Id} || Id <- [<<"m3">>, <<"m4">>], Key <- [?NARROW, ?WIDE]],
    Forget = fun(Copies) -> [{Key, Topic, undefined} || {Key, Topic, _} <- Copies] end,
    [
        {"copies are told apart", fun() ->
            {Taken, [], S1} = copies(Before ++ After, S),
            ?assertMatch([[_], [_], [_], [], [_], []], Taken),
            %% none of its copies is taken again when all is settled, nor one that comes late
            {More, [], _} = copies(
                [{?WIDE, <<"a/b">>, <<"m2">>}, {?WIDE, <<"a/b">>, <<"m5">>}, {?NARROW, <<"a/b">>, <<"m5">>}],
                joined(?WIDE, S1)
            ),
            ?assertMatch([[], [_], []], More)
        end},
        {"copies are not told apart", fun() ->
            %% the broker has confirmed before it sends what is for both
            {Taken, [], S1} = copies(Forget(Before), S),
            ?assertMatch([[_], [_]], Taken),
            {More, [], _} = copies(Forget(After), joined(?WIDE, S1)),
            ?assertMatch([[], [_], [], [_]], More)
        end},
        {"what only the new filter matches", fun() ->
            ?assertMatch({[[<<"2">>]], [], _}, copies([{?WIDE, <<"a/c">>, <<"m1">>}], S)),
            ?assertMatch({[[<<"2">>]], [], _}, copies([{?WIDE, <<"a/c">>, undefined}], S))
        end}
    ].

no_message_is_lost_while_a_filter_leaves_test_() ->
    {[?WIDE], S} = limit(<<"2">>, 0, both()),
    Both = fun(Id) -> [{Key, <<"a/b">>, Id} || Key <- [?NARROW, ?WIDE]] end,
    [
        {"copies are told apart", fun() ->
            {Taken, [], S1} = copies(Both(<<"m1">>) ++ [{?NARROW, <<"a/b">>, <<"m2">>}], S),
            ?assertMatch([[<<"1">>], [], [<<"1">>]], Taken),
            {More, [], _} = copies([{?NARROW, <<"a/b">>, Id} || Id <- [<<"m1">>, <<"m3">>]], unsubscribed(?WIDE, S1)),
            ?assertEqual([[], [<<"1">>]], More)
        end},
        {"copies are not told apart", fun() ->
            {Taken, [], S1} = copies(Both(undefined), S),
            ?assertEqual([[], [<<"1">>]], Taken),
            {More, [], _} = copies([{?NARROW, <<"a/b">>, undefined}], unsubscribed(?WIDE, S1)),
            ?assertEqual([[<<"1">>]], More)
        end},
        {"what only the old filter matches", fun() ->
            ?assertMatch({[[<<"2">>]], [], _}, copies([{?WIDE, <<"a/c">>, <<"m1">>}], S))
        end}
    ].

%% The member that takes the first copy may reach its max by it: the second copy is for nobody.
a_max_reached_by_one_of_two_copies_test_() ->
    {[], S} = limit(<<"2">>, 1, both()),
    [
        ?_test(begin
            {Taken, Unused, _} = copies([{Key, <<"a/b">>, Id} || Id <- Ids, Key <- Keys], S),
            ?assertEqual({length(Ids), [?WIDE]}, {length(lists:append(Taken)), Unused}),
            ?assertEqual([<<"1">>, <<"2">>], lists:usort(lists:append(Taken)))
        end)
     || Ids <- [[<<"m1">>, <<"m2">>, <<"m3">>], [undefined, undefined]],
        Keys <- [[?NARROW, ?WIDE], [?WIDE, ?NARROW]]
    ].

%% A broker that is logged in to anew confirms nothing of before.
nothing_of_before_counts_when_it_begins_anew_test() ->
    {[?WIDE], S1} = limit(<<"2">>, 0, both()),
    S2 = begin_anew(S1),
    ?assertEqual([?NARROW], keys(S2)),
    ?assertEqual([<<"1">>], sids(?NARROW, <<"a/b">>, S2)),
    S3 = begin_anew(joining(<<"q">>, <<"3">>, <<"a/+">>, S2)),
    ?assertEqual([], sids(?NARROW, <<"a/b">>, S3)),
    {[Plain = ?PLAIN(<<"x">>)], S4} = limit(<<"4">>, 0, plain(<<"4">>, <<"x">>, S3)),
    ?assertEqual([], sids(Plain, <<"x">>, begin_anew(S4))).

%% What is remembered of messages is bounded.
messages_are_forgotten_test() ->
    Deliver = fun(N, Acc) ->
        {[_], [], NAcc} = deliver(?WIDE, <<"a/b">>, <<N:128>>, Acc),
        NAcc
    end,
    Few = lists:foldl(Deliver, both(), lists:seq(1, 256)),
    Many = lists:foldl(Deliver, Few, lists:seq(257, 10000)),
    ?assert(erts_debug:flat_size(Many) =< erts_debug:flat_size(Few) + 100).

%% Not one look at each filter for each message.
many_filters_of_one_group_test() ->
    Filter = fun(N) -> <<"s/", (integer_to_binary(N))/binary>> end,
    S = lists:foldl(
        fun(N, Acc) -> member_of(<<"q">>, integer_to_binary(N), Filter(N), Acc) end, new(), lists:seq(1, 10000)
    ),
    {Reductions, ok} = reductions(fun() ->
        [
            ?assertEqual([integer_to_binary(N)], sids({<<"q">>, Filter(N)}, Filter(N), S))
         || N <- lists:seq(1, 10000, 100)
        ],
        ok
    end),
    ?assert(Reductions < 100 * 1000).

reductions(Fun) ->
    {reductions, Before} = process_info(self(), reductions),
    Result = Fun(),
    {reductions, After} = process_info(self(), reductions),
    {After - Before, Result}.

%% docs/architecture.md, Mapping, 2
the_parent_of_a_full_wildcard_is_dropped_test_() ->
    Cases = [
        {<<"foo/#">>, <<"foo">>, false},
        {<<"foo/#">>, <<"foo/">>, true},
        {<<"foo/#">>, <<"foo/a">>, true},
        {<<"foo/#">>, <<"foo/a/b">>, true},
        {<<"+/#">>, <<"foo">>, false},
        {<<"+/#">>, <<"foo/a">>, true},
        {<<"a/+/#">>, <<"a/longer-than-the-filter">>, false},
        {<<"a/+/#">>, <<"a//b">>, true},
        {<<"#">>, <<"foo">>, true},
        {<<"/#">>, <<"">>, false},
        {<<"/#">>, <<"/a">>, true}
    ],
    [
        {binary_to_list(<<Filter/binary, " ", Topic/binary>>), fun() ->
            Plain = plain(<<"1">>, Filter, new()),
            ?assertEqual(Expected, sids(?PLAIN(Filter), Topic, Plain) =:= [<<"1">>]),
            Member = member_of(<<"q">>, <<"1">>, Filter, new()),
            ?assertEqual(Expected, sids({<<"q">>, Filter}, Topic, Member) =:= [<<"1">>])
        end}
     || {Filter, Topic, Expected} <- Cases
    ].

%% docs/protocol.md section 6: a 503 goes to a plain subscription only.
no_responders_finds_a_plain_subscription_test() ->
    {_, S0} = add(<<"1">>, <<"_INBOX.x.*">>, <<"q">>, {<<"q">>, <<"_INBOX/x/+">>}, new()),
    ?assertEqual(undefined, plain_sid(<<"_INBOX/x/1">>, S0)),
    {_, S1} = add(<<"2">>, <<"_INBOX.x.*">>, undefined, ?PLAIN(<<"_INBOX/x/+">>), S0),
    ?assertEqual(<<"2">>, plain_sid(<<"_INBOX/x/1">>, S1)),
    ?assertEqual(undefined, plain_sid(<<"_INBOX/x">>, S1)),
    ?assertEqual(undefined, plain_sid(<<"_INBOX/y/1">>, S1)),
    {_, S2} = add(<<"3">>, <<"_INBOX.x.>">>, undefined, ?PLAIN(<<"_INBOX/x/#">>), S0),
    ?assertEqual(undefined, plain_sid(<<"_INBOX/x">>, S2)),
    {_, S3} = add(<<"4">>, <<"_INBOX.x">>, undefined, ?PLAIN(<<"_INBOX/x">>), S2),
    ?assertEqual(<<"4">>, plain_sid(<<"_INBOX/x">>, S3)),
    {[_], S4} = limit(<<"4">>, 0, S3),
    ?assertEqual(undefined, plain_sid(<<"_INBOX/x">>, S4)).

a_rejected_key_frees_all_its_sids_test() ->
    Key = ?PLAIN(<<"a">>),
    S = plain(<<"3">>, <<"b">>, plain(<<"2">>, <<"a">>, plain(<<"1">>, <<"a">>, new()))),
    {Rejected, NS} = reject(Key, S),
    ?assertEqual([<<"1">>, <<"2">>], lists:sort([Sid || #{sid := Sid} <- Rejected])),
    ?assertEqual({1, [?PLAIN(<<"b">>)]}, {count(NS), keys(NS)}),
    ?assertEqual({[], NS}, reject(Key, NS)).

%% Until the broker confirms, what it has sent already belongs to the one who leaves: in a queue
%% group nobody else gets it.
the_last_sid_of_a_key_leaves_when_the_broker_confirms_test_() ->
    [
        {binary_to_list(Filter), fun() ->
            {_, S0} = add(<<"1">>, <<"a">>, QueueGroup, Key, new()),
            {[Key], S1} = limit(<<"1">>, 0, S0),
            ?assertNot(member(<<"1">>, S1)),
            ?assertEqual({0, []}, {count(S1), keys(S1)}),
            ?assertEqual([<<"1">>], sids(Key, <<"a">>, S1)),
            S2 = unsubscribed(Key, S1),
            ?assertEqual(new(), S2),
            ?assertEqual([], sids(Key, <<"a">>, S2))
        end}
     || {QueueGroup, Key = {_, Filter}} <- [
            {undefined, ?PLAIN(<<"a">>)}, {<<"q">>, {<<"q">>, <<"a">>}}
        ]
    ].

a_key_is_asked_for_again_while_it_is_left_test() ->
    Key = ?PLAIN(<<"a">>),
    {[Key], S1} = limit(<<"1">>, 0, plain(<<"1">>, <<"a">>, new())),
    {new_key, S2} = add(<<"2">>, <<"a">>, undefined, Key, S1),
    ?assertEqual([<<"2">>], sids(Key, <<"a">>, S2)),
    S3 = unsubscribed(Key, S2),
    ?assertEqual([<<"2">>], sids(Key, <<"a">>, S3)),
    ?assertEqual([Key], keys(S3)).

with_a_max_nothing_comes_after_the_unsub_test() ->
    Key = ?PLAIN(<<"a">>),
    {[], S1} = limit(<<"1">>, 5, plain(<<"1">>, <<"a">>, new())),
    {[Key], S2} = limit(<<"1">>, 0, S1),
    ?assertEqual([], sids(Key, <<"a">>, S2)).

%% -------------------------------------------------------------------------------------------
%% What an operation has to wait for

must_wait(Op, S) -> nats_gateway_subscriptions:must_wait(Op, false, S).

sub(Sid, Filter) -> #sub{subject = Filter, filter = Filter, sid = Sid}.

published(S) -> nats_gateway_subscriptions:published(S).

a_sub_waits_for_what_was_published_test() ->
    S = plain(<<"1">>, <<"a">>, new()),
    ?assertEqual(no, must_wait(sub(<<"2">>, <<"a">>), S)),
    ?assertEqual(own, must_wait(sub(<<"2">>, <<"a">>), published(S))),
    %% the broker knows when it was asked
    ?assertEqual(no, must_wait(sub(<<"2">>, <<"b">>), published(S))),
    ?assertEqual(own, nats_gateway_subscriptions:must_wait(sub(<<"2">>, <<"b">>), true, published(S))),
    ?assertEqual(own, must_wait(sub(<<"1">>, <<"b">>), published(S))).

a_key_that_leaves_is_waited_for_test() ->
    {_, S} = limit(<<"1">>, 0, plain(<<"1">>, <<"a">>, new())),
    ?assertEqual(own, must_wait(sub(<<"1">>, <<"a">>), S)).

an_unsub_waits_for_all_where_others_stay_test() ->
    S = plain(<<"2">>, <<"a">>, plain(<<"1">>, <<"a">>, new())),
    ?assertEqual(all, must_wait(#unsub{sid = <<"1">>}, S)),
    ?assertEqual(no, must_wait(#unsub{sid = <<"1">>, max = 2}, S)),
    ?assertEqual(own, must_wait(#unsub{sid = <<"1">>, max = 2}, published(S))).

nothing_waits_behind_a_barrier_test() ->
    S = published(plain(<<"1">>, <<"a">>, new())),
    ?assertEqual(own, must_wait({connect, #{}}, S)),
    ?assertEqual(no, must_wait({connect, #{}}, nats_gateway_subscriptions:flushed(S))),
    Fenced = nats_gateway_subscriptions:fenced(S),
    ?assertEqual(no, must_wait(sub(<<"2">>, <<"a">>), Fenced)),
    ?assertEqual(own, must_wait(sub(<<"2">>, <<"a">>), published(Fenced))),
    ?assertEqual(no, must_wait(sub(<<"2">>, <<"a">>), nats_gateway_subscriptions:next_segment(Fenced))).

%% nats-server's clients limit what they have just subscribed.
the_latest_sub_is_not_waited_for_test() ->
    S = plain(<<"1">>, <<"b">>, published(plain(<<"0">>, <<"a">>, new()))),
    ?assertEqual(no, must_wait(#unsub{sid = <<"1">>, max = 1}, S)),
    ?assertEqual(own, must_wait(#unsub{sid = <<"0">>, max = 1}, S)),
    ?assertEqual(own, must_wait(#unsub{sid = <<"1">>, max = 1}, published(S))).
