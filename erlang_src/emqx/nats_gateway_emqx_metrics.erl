%% What EMQX counts: its hooks, the metrics of its gateway, and the statistics of a client.
-module(nats_gateway_emqx_metrics).

-export([context/1]).
-export([run_hook/4]).
-export([fold_hook/5]).
-export([count/3]).
-export([count_operations/2]).
-export([received/3]).
-export([delivered/2]).
-export([statistics/2]).

-export_type([context/0]).

-define(GATEWAY, nats).

%% The same for all clients: EMQX's gateway context and the table of its metrics.
-type context() :: #{ctx := map(), metrics := atom()}.

-spec context(Ctx :: map()) -> context().
context(Ctx) -> #{ctx => Ctx, metrics => emqx_gateway_metrics:tabname(?GATEWAY)}.

-spec run_hook(atom(), ConnInfo :: map(), [term()], context()) -> ok.
run_hook(Name, ConnInfo, Arguments, Context) ->
    ok = count(Name, 1, Context),
    nats_gateway_emqx_compat:run_hook(Name, ConnInfo, Arguments).

-spec fold_hook(atom(), ConnInfo :: map(), [term()], Acc, context()) -> Acc when Acc :: term().
fold_hook(Name, ConnInfo, Arguments, Acc, Context) ->
    ok = count(Name, 1, Context),
    nats_gateway_emqx_compat:fold_hook(Name, ConnInfo, Arguments, Acc).

%% The table of EMQX's gateway metrics may be gone already when a client ends.
-spec count(atom(), integer(), context()) -> ok.
count(_, 0, _) ->
    ok;
count(Name, N, #{metrics := Table}) ->
    try ets:update_counter(Table, Name, {2, N}, {Name, 0}) of
        _ -> ok
    catch
        error:badarg -> ok
    end.

%% Messages that the client has published.
-spec received(non_neg_integer(), QoS :: 0..2, context()) -> ok.
received(0, _, _) ->
    ok;
received(N, QoS, Context) ->
    ok = count('messages.received', N, Context),
    nats_gateway_emqx_compat:count('messages.received', N),
    nats_gateway_emqx_compat:count(received_metric(QoS), N).

received_metric(0) -> 'messages.qos0.received';
received_metric(1) -> 'messages.qos1.received';
received_metric(2) -> 'messages.qos2.received'.

%% Messages that were sent to the client.
-spec delivered(non_neg_integer(), context()) -> ok.
delivered(0, _) ->
    ok;
delivered(N, Context) ->
    ok = count('messages.delivered', N, Context),
    nats_gateway_emqx_compat:count('messages.delivered', N),
    nats_gateway_emqx_compat:count('messages.sent', N).

-spec count_operations([{{received | sent, Kind :: atom()}, pos_integer()}], context()) -> ok.
count_operations(Kinds, Context) ->
    lists:foreach(fun({Kind, N}) -> count(packets(Kind), N, Context) end, Kinds).

packets({received, connect}) -> 'packets.connect.received';
packets({received, ping}) -> 'packets.ping.received';
packets({received, pong}) -> 'packets.pong.received';
packets({received, pub}) -> 'packets.pub.received';
packets({received, hpub}) -> 'packets.hpub.received';
packets({received, sub}) -> 'packets.sub.received';
packets({received, unsub}) -> 'packets.unsub.received';
packets({sent, info}) -> 'packets.info.sent';
packets({sent, ok}) -> 'packets.ok.sent';
packets({sent, err}) -> 'packets.err.sent';
packets({sent, ping}) -> 'packets.ping.sent';
packets({sent, pong}) -> 'packets.pong.sent';
packets({sent, msg}) -> 'packets.msg.sent';
packets({sent, hmsg}) -> 'packets.hmsg.sent'.

%% The statistics of this process, under the names that EMQX's channels use: `cnt' counts for the
%% socket, `pkt' counts operations, `msg' counts messages.
-spec statistics(map(), Subscriptions :: non_neg_integer()) -> [{atom(), non_neg_integer()}].
statistics(Statistics, Subscriptions) ->
    Value = fun(Name) -> maps:get(Name, Statistics, 0) end,
    [
        {subscriptions_cnt, Subscriptions},
        {recv_oct, Value(octets_received)},
        {recv_cnt, Value(reads)},
        {recv_pkt, Value(operations_received)},
        {recv_msg, Value(messages_received)},
        {send_oct, Value(octets_sent)},
        {send_cnt, Value(writes)},
        {send_pkt, Value(operations_sent)},
        {send_msg, Value(messages_sent)}
        | process_statistics(process_info(self(), [message_queue_len, heap_size, reductions]))
    ].

process_statistics([{message_queue_len, Length}, {heap_size, Size}, {reductions, Reductions}]) ->
    [{mailbox_len, Length}, {heap_size, Size}, {reductions, Reductions}].
