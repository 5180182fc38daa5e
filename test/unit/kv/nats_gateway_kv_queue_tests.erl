-module(nats_gateway_kv_queue_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_kv_queue, [new/0, add/4, pass/3, take/2, settle/1]).

in_the_order_of_revisions_test() ->
    Q = new(),
    [?assertEqual(new, add(R, T, put, Q)) || {R, T} <- [{3, <<"c">>}, {1, <<"a">>}, {2, <<"b">>}]],
    ?assertEqual(3, nats_gateway_kv_queue:size(Q)),
    ?assertEqual([{1, <<"a">>, put}, {2, <<"b">>, put}], take(2, Q)),
    ?assertEqual([{3, <<"c">>, put}], take(2, Q)),
    ?assertEqual([], take(1, Q)),
    ?assertEqual([], take(0, Q)).

%% A key that changes while it waits is in the queue once, with its last revision.
a_later_revision_takes_the_place_test() ->
    Q = new(),
    new = add(1, <<"a">>, put, Q),
    new = add(2, <<"b">>, put, Q),
    new = add(3, <<"a">>, {delete, x}, Q),
    known = add(3, <<"a">>, put, Q),
    known = add(2, <<"a">>, put, Q),
    ?assertEqual([{2, <<"b">>, put}, {3, <<"a">>, {delete, x}}], take(9, Q)).

%% The message of a change comes after the first look has seen the value.
nothing_twice_test() ->
    Q = new(),
    new = add(1, <<"a">>, put, Q),
    [_] = take(1, Q),
    known = add(1, <<"a">>, put, Q),
    known = pass(1, <<"a">>, Q),
    new = pass(2, <<"a">>, Q),
    known = pass(2, <<"a">>, Q),
    new = add(3, <<"a">>, put, Q),
    [{3, <<"a">>, put}] = take(2, Q).

%% After some time, nothing that was sent is remembered, and what waits still is.
settled_test() ->
    Q0 = new(),
    new = add(1, <<"sent">>, put, Q0),
    [_] = take(1, Q0),
    new = add(2, <<"waits">>, put, Q0),
    Q = settle(Q0),
    new = pass(1, <<"sent">>, Q),
    known = add(2, <<"waits">>, put, Q),
    new = add(3, <<"waits">>, put, Q),
    [{3, <<"waits">>, put}] = take(2, Q),
    new = add(3, <<"waits">>, put, Q).
