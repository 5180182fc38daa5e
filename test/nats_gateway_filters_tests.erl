-module(nats_gateway_filters_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_filters, [new/1, count/1, remove/2, matching/2, first/2]).

filters(Kind, Filters) -> lists:foldl(fun nats_gateway_filters:add/2, new(Kind), Filters).

%% All filters of up to three levels out of these; so many that they don't stay a list.
all(Kind) ->
    {Separator, Levels} =
        case Kind of
            subject -> {<<".">>, [<<"a">>, <<"b">>, <<"*">>]};
            topic -> {<<"/">>, [<<"a">>, <<>>, <<"$x">>, <<"+">>]}
        end,
    Many =
        case Kind of
            subject -> <<">">>;
            topic -> <<"#">>
        end,
    Lists = [[A] || A <- Levels] ++ [[A, B] || A <- Levels, B <- Levels] ++
        [[A, B, C] || A <- Levels, B <- Levels, C <- Levels],
    [join(Separator, List) || List <- Lists ++ [List ++ [Many] || List <- [[] | Lists]]].

join(Separator, Levels) -> iolist_to_binary(lists:join(Separator, Levels)).

matches(subject, Filter, Name) -> Filter =:= Name orelse nats_gateway_nif:subject_matches(Filter, Name);
matches(topic, Filter, Name) -> nats_gateway_nif:topic_matches(Filter, Name).

%% As a look at each of them.
matching_test_() ->
    [
        {atom_to_list(Kind), fun() ->
            All = all(Kind),
            lists:foldl(
                fun(Gone, {Present, Filters}) ->
                    ?assertEqual(length(Present), count(Filters)),
                    [same(Kind, Name, Present, Filters) || Name <- names(Kind, Gone)],
                    {Present -- [Gone], remove(Gone, Filters)}
                end,
                {All, filters(Kind, All)},
                All
            )
        end}
     || Kind <- [subject, topic]
    ].

names(subject, Name) -> [Name, <<Name/binary, ".a">>, <<"a">>, <<"b.a">>, <<"c">>, <<"a.b.*">>, <<"a..b">>];
names(topic, Name) -> [Name, <<Name/binary, "/a">>, <<"a">>, <<>>, <<"$x">>, <<"$x/a">>, <<"a//$x">>].

same(Kind, Name, Present, Filters) ->
    Expected = lists:sort([Filter || Filter <- Present, matches(Kind, Filter, Name)]),
    ?assertEqual({Name, Expected}, {Name, lists:sort(matching(Name, Filters))}),
    First = first(Name, Filters),
    ?assert(First =:= undefined andalso Expected =:= [] orelse lists:member(First, Expected)).

%% What was added comes out again, whatever is taken out between.
nothing_is_left_test() ->
    Filters = filters(topic, all(topic)),
    ?assertEqual(new(topic), lists:foldl(fun nats_gateway_filters:remove/2, Filters, lists:reverse(all(topic)))).

%% Long filters with the same beginning take not much more than their text.
memory_test() ->
    Beginning = join(<<"/">>, lists:duplicate(2000, <<"a">>)),
    Long = [<<Beginning/binary, $/, (integer_to_binary(N))/binary>> || N <- lists:seq(1, 17)],
    Few = filters(topic, lists:sublist(Long, 16)),
    Bytes = 8 * erts_debug:flat_size(Few),
    ?assert(Bytes < 16 * 100),
    Many = filters(topic, Long),
    ?assertEqual([lists:last(Long)], matching(lists:last(Long), Many)),
    ?assert(8 * erts_debug:flat_size(Many) < 20 * iolist_size(Long)),
    Left = lists:foldl(fun nats_gateway_filters:remove/2, Many, lists:nthtail(7, Long)),
    ?assert(8 * erts_debug:flat_size(Left) < 16 * 100).
