-module(nats_gateway_output_tests).

-include_lib("eunit/include/eunit.hrl").
-include("nats_gateway.hrl").

-import(nats_gateway_output, [
    new/0, is_behind/1, bytes/1, left/2, later/2, take/1, hold/3, holds/1, release/1, drop/1
]).

message(Size) ->
    #message{topic = <<"a">>, sids = [<<"1">>], payload = binary:copy(<<"x">>, Size)}.

what_the_host_says_waits_behind_what_is_left_test() ->
    Output = later([c, d], later([b], left([a, {frames, [message(100)]}], new()))),
    ?assert(is_behind(Output)),
    ?assert(bytes(Output) > 100),
    {Steps, Empty} = take(Output),
    ?assertEqual([a, {frames, [message(100)]}, b, c, d], Steps),
    ?assertEqual(new(), Empty).

what_is_held_comes_in_order_test() ->
    Step = {frames, [message(1), message(2), message(3)]},
    Bytes = nats_gateway_delivering:bytes([Step]),
    Output = hold([message(2), message(3)], Bytes, hold([message(1)], 0, new())),
    ?assert(holds(Output)),
    ?assertNot(is_behind(Output)),
    ?assertEqual({Step, new()}, release(Output)).

only_what_is_held_is_not_dropped_test() ->
    Held = {frames, [message(1)]},
    Output = hold([message(1)], nats_gateway_delivering:bytes([Held]), new()),
    ?assertEqual(Output, drop(left([{frames, [message(100)]}], later([b], Output)))).
