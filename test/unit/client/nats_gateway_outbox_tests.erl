-module(nats_gateway_outbox_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_outbox, [
    new/0, mute/1, is_mute/1, sent/2, judge_pending/5, watch_progress/2, check_progress/2,
    keep_pong/2, take_pong/1, drop_pong/1
]).

the_socket_is_asked_when_much_was_sent_test() ->
    {ok, Outbox} = sent(65535, new()),
    {check, Checked} = sent(1, Outbox),
    {ok, Judged} = judge_pending(0, {0, infinity}, 0, 100, Checked),
    ?assertMatch({ok, _}, sent(65535, Judged)).

more_than_max_pending_is_too_much_test() ->
    ?assertMatch({ok, _}, judge_pending(100, {0, infinity}, 0, 100, new())),
    ?assertMatch({slow_consumer, _}, judge_pending(101, {0, infinity}, 0, 100, new())).

%% Ten messages became 10000 bytes each: so will those in the mailbox.
the_mailbox_counts_test() ->
    {check, Outbox} = sent(100000, new()),
    {ok, Judged} = judge_pending(0, {9, infinity}, 10, 100000, Outbox),
    ?assertMatch({slow_consumer, _}, judge_pending(0, {10, infinity}, 10, 100000, Judged)),
    ?assertMatch({ok, _}, judge_pending(0, {10, infinity}, 10, 102560, Judged)).

%% A message of a megabyte was handled, and 64 chunks of 64 KiB wait: they are four more such messages, not 64.
the_mailbox_has_chunks_of_large_messages_test() ->
    {check, Outbox} = sent(1048576, new()),
    Bytes = 64 * (65536 + 256),
    ?assertMatch({ok, _}, judge_pending(0, {64, 65536}, 1, Bytes, Outbox)),
    ?assertMatch({slow_consumer, _}, judge_pending(0, {64, 65536}, 1, Bytes - 1, Outbox)),
    %% chunks of many small messages
    {check, Small} = sent(100000, new()),
    ?assertMatch({ok, _}, judge_pending(0, {64, 65536}, 1000, 64 * (100 + 256), Small)),
    ?assertMatch({slow_consumer, _}, judge_pending(0, {64, 65536}, 1000, 64 * (100 + 256) - 1, Small)).

who_takes_nothing_for_four_checks_is_a_slow_consumer_test() ->
    {stuck, One} = check_progress(7, watch_progress(7, new())),
    {stuck, Two} = check_progress(7, One),
    {stuck, Three} = check_progress(7, Two),
    ?assertEqual(slow_consumer, check_progress(7, Three)),
    {moves, Moved} = check_progress(8, Three),
    ?assertMatch({stuck, _}, check_progress(8, Moved)).

only_the_latest_ping_is_answered_test() ->
    ?assertEqual(none, take_pong(new())),
    Outbox = keep_pong(<<"b">>, keep_pong(<<"a">>, new())),
    ?assertEqual({ok, <<"b">>}, take_pong(Outbox)),
    ?assertEqual(none, take_pong(drop_pong(Outbox))).

mute_test() ->
    ?assertNot(is_mute(new())),
    ?assert(is_mute(mute(new()))).
