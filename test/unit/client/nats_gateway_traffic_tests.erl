-module(nats_gateway_traffic_tests).

-include_lib("eunit/include/eunit.hrl").
-include("nats_gateway.hrl").

-import(nats_gateway_traffic, [
    new/1, count/3, count_operations/2, resume/1, take_operations/1, delivered/3, too_long/2, stats/1
]).

pub(Headers) -> #pub{subject = <<"a">>, topic = <<"a">>, headers = Headers, payload = <<>>}.

message(Sids, Headers) -> #message{topic = <<"a">>, sids = Sids, headers = Headers, payload = <<>>}.

operations_of_each_kind_since_the_last_report_test() ->
    Traffic = new(true),
    ok = count_operations([{connect, #{}}, pub(undefined), pub(undefined), pub(<<"h">>), ping, eof], Traffic),
    ok = count({sent, pong}, 1, Traffic),
    {Taken, Idle} = take_operations(Traffic),
    ?assertEqual(
        [
            {{received, connect}, 1},
            {{received, ping}, 1},
            {{received, pub}, 2},
            {{received, hpub}, 1},
            {{sent, pong}, 1}
        ],
        Taken
    ),
    ?assertEqual({[], Idle}, take_operations(Idle)),
    %% Nothing is counted, and nothing fails, until it is resumed.
    ok = count({sent, pong}, 1, Idle),
    ok = count_operations([ping], Idle),
    ?assertEqual(
        #{messages_received => 0, messages_sent => 1, messages_unroutable => 0},
        stats(delivered([], 1, Idle))
    ),
    Resumed = resume(Idle),
    ?assertEqual(Resumed, resume(Resumed)),
    ok = count({sent, ping}, 2, Resumed),
    ?assertMatch({[{{sent, ping}, 2}], _}, take_operations(Resumed)).

messages_count_for_each_sid_test() ->
    Messages = [message([<<"1">>, <<"2">>], undefined), message([<<"1">>], {properties, [], undefined})],
    Traffic = delivered(Messages, 3, new(true)),
    ?assertMatch({[{{sent, msg}, 3}], _}, take_operations(Traffic)),
    ?assertEqual(3, nats_gateway_traffic:sent(Traffic)),
    ?assertEqual(2, nats_gateway_traffic:fanned_out(Traffic)),
    ?assertEqual(
        #{messages_received => 0, messages_sent => 2, messages_unroutable => 1},
        stats(too_long(1, Traffic))
    ).

nobody_wants_to_know_test() ->
    Traffic = new(false),
    ok = count_operations([ping], Traffic),
    ?assertEqual({[], Traffic}, take_operations(resume(Traffic))).
