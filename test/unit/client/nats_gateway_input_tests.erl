-module(nats_gateway_input_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_input, [
    new/0, add/2, is_enough/1, bytes/1, keep/3, drop/1, finish/2, finish/3, ended/1, farewell/1
]).

chunks_are_joined_when_enough_is_there_test() ->
    ?assertNot(is_enough(new())),
    Input = keep(<<"PUB a 4\r\nab">>, 15, new()),
    ?assertNot(is_enough(Input)),
    More = add(<<"cd\r\n">>, Input),
    ?assert(is_enough(More)),
    ?assertEqual(<<"PUB a 4\r\nabcd\r\n">>, bytes(More)),
    ?assertEqual(0, nats_gateway_input:size(keep(<<>>, 1, More))).

nothing_is_enough_behind_an_error_test() ->
    ?assertNot(is_enough(add(<<"PING\r\n">>, drop(new())))).

the_first_end_counts_test() ->
    ?assertEqual(false, ended(new())),
    Ended = finish({error, bad_frame}, <<"close">>, new()),
    ?assertEqual({error, bad_frame}, ended(finish(eof, Ended))),
    ?assertEqual(<<"close">>, farewell(Ended)).
