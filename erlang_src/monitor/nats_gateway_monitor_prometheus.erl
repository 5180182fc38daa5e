%% `/metrics': the text format of Prometheus, version 0.0.4.
-module(nats_gateway_monitor_prometheus).

-export([text/1]).

-spec text([nats_gateway_monitor_metrics:family()]) -> iodata().
text(Families) -> [family(Family) || Family <- Families].

family({Name, Type, Help, Samples}) ->
    [
        [<<"# HELP ">>, Name, $\s, Help, $\n],
        [<<"# TYPE ">>, Name, $\s, atom_to_list(Type), $\n]
        | [sample(Name, Sample) || Sample <- Samples]
    ].

sample(Name, {Labels, #{buckets := Buckets, count := Count, sum := Sum}}) ->
    [
        [line([Name, <<"_bucket">>], Labels ++ [{le, le(UpTo)}], N) || {UpTo, N} <- Buckets],
        line([Name, <<"_sum">>], Labels, Sum),
        line([Name, <<"_count">>], Labels, Count)
    ];
sample(Name, {Labels, Value}) ->
    line(Name, Labels, Value).

line(Name, Labels, Value) -> [Name, labels(Labels), $\s, number(Value), $\n].

le(infinity) -> <<"+Inf">>;
le(UpTo) -> number(UpTo).

number(Value) when is_integer(Value) -> integer_to_binary(Value);
number(Value) -> float_to_binary(Value, [short]).

labels([]) ->
    [];
labels(Labels) ->
    Pairs = [[atom_to_list(Name), $=, $", escaped(Value), $"] || {Name, Value} <- Labels],
    [${, lists:join($,, Pairs), $}].

escaped(Value) ->
    lists:foldl(
        fun({From, To}, Acc) -> binary:replace(Acc, From, To, [global]) end,
        Value,
        [{<<"\\">>, <<"\\\\">>}, {<<"\"">>, <<"\\\"">>}, {<<"\n">>, <<"\\n">>}]
    ).
