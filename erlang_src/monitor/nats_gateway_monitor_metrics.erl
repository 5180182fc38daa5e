%% The metrics of the gateway as values, for whoever gives them to Prometheus. Names and units are those
%% of its conventions: base units, which are the end of the name, and `_total' for counters.
-module(nats_gateway_monitor_metrics).

-export([families/1]).

-include("nats_gateway_census.hrl").

-export_type([family/0, labels/0]).

-type labels() :: [{Name :: atom(), Value :: binary()}].

-type family() ::
    {Name :: binary(), gauge | counter, Help :: binary(), [{labels(), number()}]}
    | {Name :: binary(), histogram, Help :: binary(), [
        {labels(), nats_gateway_durations:histogram()}
    ]}.

%% Most clients whose mailboxes are looked at, and for how long at most: a process that is busy is waited
%% for until its turn is over.
-define(MAX_MAILBOXES, 10_000).
-define(MAILBOXES_MS, 500).

-spec families(nats_gateway_monitor_facts:gateway()) -> [family()].
families(Gateway = #{started := Started}) ->
    Rows = nats_gateway_census:open(),
    Totals = nats_gateway_census:totals(),
    {Status, _} = nats_gateway_monitor_facts:healthz(Gateway),
    [
        gauge(<<"up">>, <<"1 while the gateway is ready for clients.">>, up(Status)),
        gauge(
            <<"start_time_seconds">>,
            <<"When it was started, in seconds of Unix time.">>,
            Started div 1000
        ),
        gauge(<<"memory_bytes">>, <<"Memory of the Erlang VM.">>, erlang:memory(total)),
        gauge(
            <<"run_queue_length">>,
            <<"Processes of the Erlang VM that wait for a core.">>,
            erlang:statistics(total_run_queue_lengths)
        )
    ] ++ of_clients(Rows, Totals, Gateway) ++ of_traffic(Rows, Totals) ++ of_time(Gateway).

up(200) -> 1;
up(_) -> 0.

of_clients(Rows, Totals = #{ended := Ended}, Gateway) ->
    {Mailboxes, Longest} = mailboxes(Rows),
    [
        {<<"nats_gateway_connections">>, gauge, <<"Connections of NATS clients, by listener.">>, [
            {[{listener, Listener}], Count}
         || {Listener, Count} <- maps:to_list(by_listener(Rows, Gateway))
        ]},
        counter(
            <<"connections_total">>,
            <<"Connections of NATS clients since the start.">>,
            [{[], maps:get(connections, Totals)}]
        ),
        counter(
            <<"connections_ended_total">>,
            <<"Connections that ended, by reason: slow_consumer, stale_connection, and so on.">>,
            [{[{reason, atom_to_binary(Reason)}], N} || {Reason, N} <- maps:to_list(all_reasons(Ended))]
        ),
        counter(
            <<"logins_refused_total">>,
            <<"Logins that were refused, by method (broker: the broker has refused it) and reason.">>,
            [
                {[{method, atom_to_binary(Method)}, {reason, atom_to_binary(Reason)}], N}
             || {Method, Reason, N} <- lists:sort(nats_gateway_census:refused())
            ]
        ),
        gauge(<<"subscriptions">>, <<"Subscriptions of NATS clients.">>, sum(subscriptions, Rows)),
        gauge(<<"pending_bytes">>, <<"Bytes that wait for NATS clients.">>, sum(pending, Rows)),
        gauge(
            <<"mailbox_messages">>,
            <<"Messages that wait in the mailboxes of the clients' processes.">>,
            Mailboxes
        ),
        gauge(<<"mailbox_messages_max">>, <<"Those of the longest of these mailboxes.">>, Longest)
    ].

%% What is there from the start can be seen to grow when it happens for the first time.
all_reasons(Ended) ->
    maps:merge(maps:from_list([{Reason, 0} || {Reason, _} <- nats_gateway_ending:rows()]), Ended).

of_traffic(Rows, Totals) ->
    Direction = fun(In, Out) ->
        [
            {[{direction, <<"in">>}], maps:get(In, Totals)},
            {[{direction, <<"out">>}], maps:get(Out, Totals)}
        ]
    end,
    Rtts = [Rtt || #census{figures = #{rtt := Rtt}} <- Rows],
    [
        counter(
            <<"messages_total">>,
            <<"Messages: in from NATS clients, out to them, each as often as it went to a subscription.">>,
            Direction(messages_received, messages_sent)
        ),
        counter(
            <<"traffic_bytes_total">>,
            <<"Bytes on the wire: in from NATS clients, out to them.">>,
            Direction(octets_received, octets_sent)
        ),
        counter(
            <<"messages_unroutable_total">>,
            <<"Messages that no topic or no control line could hold.">>,
            [{[], maps:get(messages_unroutable, Totals)}]
        ),
        gauge(
            <<"client_rtt_seconds_max">>,
            <<"The longest of the round trips to the clients that are here.">>,
            lists:max([0 | Rtts]) / 1_000_000_000
        )
    ].

of_time(Gateway) ->
    OfBroker =
        case maps:get(broker, Gateway, remote) of
            remote ->
                {<<"nats_gateway_broker_round_trip_seconds">>, histogram,
                    <<"From a PINGREQ to the broker's PINGRESP; of each client one at a time.">>, [
                        {[], nats_gateway_durations:histogram(broker_round_trip)}
                    ]};
            local ->
                {<<"nats_gateway_publish_seconds">>, histogram,
                    <<"What EMQX took for messages that a client sent together; a sample.">>, [
                        {[], nats_gateway_durations:histogram(publish)}
                    ]}
        end,
    [
        {<<"nats_gateway_library_call_seconds">>, histogram,
            <<"Calls of the native library: decode what a client sent, encode what it gets; a sample.">>, [
                {[{function, atom_to_binary(Kind)}], nats_gateway_durations:histogram(Kind)}
             || Kind <- [decode, encode]
            ]},
        OfBroker
    ].

gauge(Name, Help, Value) -> {<<"nats_gateway_", Name/binary>>, gauge, Help, [{[], Value}]}.

counter(Name, Help, Samples) -> {<<"nats_gateway_", Name/binary>>, counter, Help, Samples}.

sum(Kind, Rows) -> lists:sum([maps:get(Kind, Figures, 0) || #census{figures = Figures} <- Rows]).

mailboxes(Rows) ->
    Until = erlang:monotonic_time(millisecond) + ?MAILBOXES_MS,
    mailboxes(lists:sublist(Rows, ?MAX_MAILBOXES), Until, 0, 0).

mailboxes([], _, Sum, Longest) ->
    {Sum, Longest};
mailboxes([#census{pid = Pid} | Rows], Until, Sum, Longest) ->
    Length =
        case process_info(Pid, message_queue_len) of
            {message_queue_len, N} -> N;
            undefined -> 0
        end,
    Left =
        case erlang:monotonic_time(millisecond) < Until of
            true -> Rows;
            false -> []
        end,
    mailboxes(Left, Until, Sum + Length, max(Longest, Length)).

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
