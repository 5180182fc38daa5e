-module(nats_gateway_inbox_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_inbox, [new/1, put/3, take/2, is_empty/1, heard/1]).

%% The first five of a moment are handed over at once. The next moment begins at 1002.
busy() ->
    lists:foldl(
        fun(N, Inbox) ->
            {take, [N], NInbox} = put(N, N, Inbox),
            NInbox
        end,
        new(true),
        lists:seq(1, 5)
    ).

messages_of_a_moment_come_together_in_order_test() ->
    {first, One} = put(a, 1002, busy()),
    {wait, Two} = put(b, 1003, One),
    ?assertNot(is_empty(Two)),
    {[a, b], Empty} = take(2002, Two),
    ?assert(is_empty(Empty)),
    ?assertMatch({[], _}, take(2003, Empty)).

%% What a client waits for may be in it; and nothing overtakes what came before.
at_once_takes_all_test() ->
    {first, One} = put(a, 1002, busy()),
    ?assertMatch({take, [a, b], _}, put(b, at_once, One)).

so_many_wait_at_most_test() ->
    {first, One} = put(1, 1002, busy()),
    Full = lists:foldl(
        fun(N, Inbox) ->
            {wait, NInbox} = put(N, 1003, Inbox),
            NInbox
        end,
        One,
        lists:seq(2, 1000)
    ),
    {take, Messages, Empty} = put(1001, 1003, Full),
    ?assertEqual(lists:seq(1, 1001), Messages),
    ?assert(is_empty(Empty)).

a_client_that_speaks_ends_the_collecting_test() ->
    ?assertMatch({take, [a], _}, put(a, 1002, heard(busy()))).
