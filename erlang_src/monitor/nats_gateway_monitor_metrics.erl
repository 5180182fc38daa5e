%% `/metrics', in the text format of Prometheus (version 0.0.4).
-module(nats_gateway_monitor_metrics).

-export([text/1]).

-include("nats_gateway_census.hrl").

-spec text(nats_gateway_monitor_facts:gateway()) -> iodata().
text(Gateway = #{started := Started}) ->
    Rows = nats_gateway_census:open(),
    #{ended := Ended} = Totals = nats_gateway_census:totals(),
    {Status, _} = nats_gateway_monitor_facts:healthz(Gateway),
    Sum = fun(Kind) -> lists:sum([figure(Kind, Row) || Row <- Rows]) end,
    Direction = fun(In, Out) ->
        [
            {[{direction, <<"in">>}], maps:get(In, Totals)},
            {[{direction, <<"out">>}], maps:get(Out, Totals)}
        ]
    end,
    [
        metric(<<"up">>, gauge, <<"1 while the gateway is ready for clients.">>, [
            {[], if Status =:= 200 -> 1; true -> 0 end}
        ]),
        metric(<<"start_time_seconds">>, gauge, <<"When it was started, in seconds of Unix time.">>, [
            {[], Started div 1000}
        ]),
        metric(<<"connections">>, gauge, <<"Connections of NATS clients, by listener.">>, [
            {[{listener, Listener}], Count}
         || {Listener, Count} <- maps:to_list(by_listener(Rows, Gateway))
        ]),
        metric(<<"connections_total">>, counter, <<"Connections of NATS clients since the start.">>, [
            {[], maps:get(connections, Totals)}
        ]),
        metric(
            <<"connections_ended_total">>,
            counter,
            <<"Connections that ended, by reason: slow_consumer, authorization_violation, and so on.">>,
            [{[{reason, atom_to_binary(Reason)}], N} || {Reason, N} <- maps:to_list(Ended)]
        ),
        metric(<<"subscriptions">>, gauge, <<"Subscriptions of NATS clients.">>, [
            {[], Sum(subscriptions)}
        ]),
        metric(<<"pending_bytes">>, gauge, <<"Bytes that wait for NATS clients.">>, [{[], Sum(pending)}]),
        metric(
            <<"messages_total">>,
            counter,
            <<"Messages: in from NATS clients, out to them, each as often as it went to a subscription.">>,
            Direction(messages_received, messages_sent)
        ),
        metric(
            <<"octets_total">>,
            counter,
            <<"Octets on the wire: in from NATS clients, out to them.">>,
            Direction(octets_received, octets_sent)
        ),
        metric(
            <<"messages_unroutable_total">>,
            counter,
            <<"Messages that no topic or no control line could hold.">>,
            [{[], maps:get(messages_unroutable, Totals)}]
        ),
        metric(<<"memory_bytes">>, gauge, <<"Memory of the Erlang VM.">>, [{[], erlang:memory(total)}]),
        metric(<<"run_queue_length">>, gauge, <<"Processes of the Erlang VM that wait for a core.">>, [
            {[], erlang:statistics(total_run_queue_lengths)}
        ])
    ].

figure(Kind, #census{figures = Figures}) -> maps:get(Kind, Figures, 0).

%% A listener without a client is shown as well.
by_listener(Rows, #{listeners := Listeners}) ->
    lists:foldl(
        fun(#census{listener = Listener}, Acc) ->
            maps:update_with(name(Listener), fun(N) -> N + 1 end, 1, Acc)
        end,
        maps:from_list([{Name, 0} || #{name := Name} <- Listeners]),
        Rows
    ).

name(Name) when is_atom(Name) -> atom_to_binary(Name);
name(Name) -> Name.

metric(Name, Type, Help, Samples) ->
    FullName = [<<"nats_gateway_">>, Name],
    [
        [<<"# HELP ">>, FullName, $\s, Help, $\n],
        [<<"# TYPE ">>, FullName, $\s, atom_to_list(Type), $\n]
        | [[FullName, labels(Labels), $\s, integer_to_list(Value), $\n] || {Labels, Value} <- Samples]
    ].

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
