-module(nats_gateway_filters_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_filters, [new/0, count/1, remove/2, matching/2]).

filters(Filters) -> lists:foldl(fun nats_gateway_filters:add/2, new(), Filters).

%% All filters of up to three levels out of these; so many that they don't stay a list.
all() ->
    Levels = [<<"a">>, <<>>, <<"$x">>, <<"+">>],
    Lists =
        [[A] || A <- Levels] ++ [[A, B] || A <- Levels, B <- Levels] ++
            [[A, B, C] || A <- Levels, B <- Levels, C <- Levels],
    [join(List) || List <- Lists ++ [List ++ [<<"#">>] || List <- [[] | Lists]]].

join(Levels) -> iolist_to_binary(lists:join(<<"/">>, Levels)).

%% The same as by a look at each of them.
matching_test() ->
    lists:foldl(
        fun(Gone, {Present, Filters}) ->
            ?assertEqual(length(Present), count(Filters)),
            [same(Topic, Present, Filters) || Topic <- topics(Gone)],
            {Present -- [Gone], remove(Gone, Filters)}
        end,
        {all(), filters(all())},
        all()
    ).

topics(Topic) -> [Topic, <<Topic/binary, "/a">>, <<"a">>, <<>>, <<"$x">>, <<"$x/a">>, <<"a//$x">>].

same(Topic, Present, Filters) ->
    Expected = [Filter || Filter <- Present, nats_gateway_nif:topic_matches(Filter, Topic)],
    ?assertEqual({Topic, lists:sort(Expected)}, {Topic, lists:sort(matching(Topic, Filters))}).

nothing_is_left_test() ->
    Left = lists:foldl(fun nats_gateway_filters:remove/2, filters(all()), lists:reverse(all())),
    ?assertEqual(new(), Left).

%% Long filters with the same beginning take not much more than their text.
memory_test() ->
    Beginning = join(lists:duplicate(2000, <<"a">>)),
    Long = [<<Beginning/binary, $/, (integer_to_binary(N))/binary>> || N <- lists:seq(1, 17)],
    Few = filters(lists:sublist(Long, 16)),
    ?assert(bytes(Few) < 16 * 100),
    Many = filters(Long),
    ?assertEqual([lists:last(Long)], matching(lists:last(Long), Many)),
    ?assert(bytes(Many) < 20 * iolist_size(Long)),
    Left = lists:foldl(fun nats_gateway_filters:remove/2, Many, lists:nthtail(7, Long)),
    ?assert(bytes(Left) < 16 * 100).

bytes(Filters) -> 8 * erts_debug:flat_size(Filters).
