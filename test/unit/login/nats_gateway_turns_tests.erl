-module(nats_gateway_turns_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_turns, [new/1, in/3, out/1, delete/2, keys/1]).

filled(Levels, Items) ->
    lists:mapfoldl(fun({Path, Item}, Turns) -> in(Path, Item, Turns) end, new(Levels), Items).

all(Turns) ->
    case out(Turns) of
        empty -> [];
        {Item, NTurns} -> [Item | all(NTurns)]
    end.

nobody_test_() -> [?_assertEqual(empty, out(new(Levels))) || Levels <- [0, 1, 2]].

without_keys_it_is_a_queue_test() ->
    {_, Turns} = filled(0, [{[], N} || N <- [3, 1, 2]]),
    ?assertEqual([3, 1, 2], all(Turns)).

keys_take_turns_test() ->
    {_, Turns} = filled(1, [{[a], a1}, {[a], a2}, {[a], a3}, {[b], b1}, {[b], b2}, {[c], c1}]),
    ?assertEqual([a1, b1, c1, a2, b2, a3], all(Turns)).

so_they_do_on_each_level_test() ->
    Items = [{[Host, User], {Host, User, N}} || Host <- [a, b], User <- [x, y], N <- [1, 2]],
    {_, Turns} = filled(2, Items ++ [{[c, z], {c, z, 1}}]),
    ?assertEqual(
        [{a, x, 1}, {b, x, 1}, {c, z, 1}, {a, y, 1}, {b, y, 1}, {a, x, 2}, {b, x, 2}, {a, y, 2}, {b, y, 2}],
        all(Turns)
    ).

%% Who comes again and again has one turn, not many.
who_leaves_and_comes_again_test() ->
    {[First, Second, _], Turns} = filled(1, [{[a], a1}, {[a], a2}, {[b], b1}]),
    Left = delete(Second, delete(First, Turns)),
    ?assertEqual([b1], all(Left)),
    {_, Again} = lists:mapfoldl(
        fun(N, Acc) ->
            {Place, NAcc} = in([a], N, Acc),
            {Place, delete(Place, NAcc)}
        end,
        Left,
        lists:seq(1, 100)
    ),
    ?assertEqual(2, keys(Again)),
    {_, Last} = in([a], last, Again),
    ?assertEqual([last, b1], all(Last)),
    {b1, Rest} = out(Again),
    ?assertEqual(1, keys(Rest)).
