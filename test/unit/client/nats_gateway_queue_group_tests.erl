-module(nats_gateway_queue_group_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_queue_group, [
    new/0, is_empty/1, leave/4, remove/3, joined/2, unsubscribed/2, filter_state/2, next/4, was_taken/2
]).

%% The broker knows all of them.
group(Members) ->
    lists:foldl(fun({Sid, Filter}, Group) -> joined(Filter, add(Sid, Filter, Group)) end, new(), Members).

add(Sid, Filter, Group) ->
    {_, NGroup} = nats_gateway_queue_group:add(Sid, Filter, Group),
    NGroup.

%% Who gets copies for this filter, one after the other.
turns(0, _, _, _) ->
    [];
turns(N, Filter, Topic, Group) ->
    {member, Sid, NGroup} = next(Filter, Topic, undefined, Group),
    [Sid | turns(N - 1, Filter, Topic, NGroup)].

members_take_turns_test() ->
    Group = group([{<<"1">>, <<"a">>}, {<<"2">>, <<"a">>}, {<<"3">>, <<"a">>}]),
    ?assertEqual([<<"3">>, <<"2">>, <<"1">>, <<"3">>], turns(4, <<"a">>, <<"a">>, Group)).

nobody_knows_another_filter_test() ->
    Group = group([{<<"1">>, <<"a">>}]),
    ?assertEqual({nobody, Group}, next(<<"b">>, <<"b">>, undefined, Group)).

%% `foo.>' is not for `foo'.
the_parent_is_for_nobody_test() ->
    Group = group([{<<"1">>, <<"a/#">>}]),
    ?assertEqual({nobody, Group}, next(<<"a/#">>, <<"a">>, undefined, Group)),
    ?assertMatch({member, <<"1">>, _}, next(<<"a/#">>, <<"a/b">>, undefined, Group)).

only_the_copy_of_the_first_filter_counts_test() ->
    Group = group([{<<"1">>, <<"a/+">>}, {<<"2">>, <<"a/b">>}]),
    ?assertMatch({member, _, _}, next(<<"a/+">>, <<"a/b">>, undefined, Group)),
    ?assertMatch({nobody, _}, next(<<"a/b">>, <<"a/b">>, undefined, Group)).

%% While a filter joins, the broker has to tell which messages are copies.
the_first_copy_counts_while_a_filter_joins_test() ->
    Group = add(<<"2">>, <<"a/b">>, group([{<<"1">>, <<"a/+">>}])),
    {member, _, Taken} = next(<<"a/b">>, <<"a/b">>, <<"id">>, Group),
    ?assert(was_taken(<<"id">>, Taken)),
    ?assertEqual({nobody, Taken}, next(<<"a/+">>, <<"a/b">>, <<"id">>, Taken)),
    ?assertMatch({nobody, _}, next(<<"a/b">>, <<"a/b">>, undefined, Group)),
    ?assertMatch({member, _, _}, next(<<"a/+">>, <<"a/b">>, undefined, Group)).

%% What the broker has sent before it knew of the UNSUB.
the_last_member_gets_what_is_on_its_way_test() ->
    {last, Group} = leave(<<"1">>, <<"a">>, true, group([{<<"1">>, <<"a">>}])),
    ?assertEqual(leaving, filter_state(<<"a">>, Group)),
    ?assertMatch({left, <<"1">>, _}, next(<<"a">>, <<"a">>, undefined, Group)),
    ?assert(is_empty(unsubscribed(<<"a">>, Group))).

a_member_with_a_max_gets_no_more_test() ->
    {last, Group} = leave(<<"1">>, <<"a">>, false, group([{<<"1">>, <<"a">>}])),
    ?assertMatch({nobody, _}, next(<<"a">>, <<"a">>, undefined, Group)).

another_member_stays_test() ->
    {others, Group} = leave(<<"2">>, <<"a">>, true, group([{<<"1">>, <<"a">>}, {<<"2">>, <<"a">>}])),
    ?assertEqual(known, filter_state(<<"a">>, Group)),
    ?assertEqual([<<"1">>, <<"1">>], turns(2, <<"a">>, <<"a">>, Group)).

a_refused_filter_leaves_nothing_test() ->
    ?assert(is_empty(remove(<<"1">>, <<"a">>, add(<<"1">>, <<"a">>, new())))).
