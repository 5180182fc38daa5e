%% Counts the messages of each direction between a client and the gateway, and the operations of
%% each kind for a host that wants to know them. It has the round trip time, too, which is that between
%% some of these operations.
-module(nats_gateway_traffic).

-export([new/1]).
-export([resume/1]).
-export([count/3]).
-export([count_operations/2]).
-export([take_operations/1]).
-export([ok/2]).
-export([oks/2]).
-export([err/2]).
-export([received/2]).
-export([delivered/3]).
-export([too_long/2]).
-export([unroutable/2]).
-export([sent/1]).
-export([fanned_out/1]).
-export([stats/1]).
-export([connected/1]).
-export([pinged/1]).
-export([ponged/1]).
-export([rtt/1]).

-include("nats_gateway.hrl").

-export_type([traffic/0, kind/0]).

-record(traffic, {
    received = 0 :: non_neg_integer(),
    %% a message counts once for each sid that it goes to
    sent = 0 :: non_neg_integer(),
    %% deliveries of the host that went to at least one sid
    fanned_out = 0 :: non_neg_integer(),
    %% messages that have no topic, or are too long for a control line
    unroutable = 0 :: non_neg_integer(),
    %% operations of each kind since the last report, for a host that wants to know. A client that
    %% does nothing after a report has no counters: they are a fifth of a kilobyte.
    operations = none :: none | idle | counters:counters_ref(),
    rtt = nats_gateway_rtt:new(erlang:monotonic_time()) :: nats_gateway_rtt:rtt()
}).

-opaque traffic() :: #traffic{}.

-type kind() ::
    {received, connect | ping | pong | pub | hpub | sub | unsub}
    | {sent, info | ok | err | ping | pong | msg | hmsg}.

%% The kinds in the order of their places in the counters.
-define(KINDS, [
    {received, connect},
    {received, ping},
    {received, pong},
    {received, pub},
    {received, hpub},
    {received, sub},
    {received, unsub},
    {sent, info},
    {sent, ok},
    {sent, err},
    {sent, ping},
    {sent, pong},
    {sent, msg},
    {sent, hmsg}
]).

-define(OK, <<"+OK\r\n">>).

-spec new(CountsOperations :: boolean()) -> traffic().
new(true) -> resume(#traffic{operations = idle});
new(false) -> #traffic{}.

%% To be called before the first operation after `take_operations/1', or that one is not counted.
-spec resume(traffic()) -> traffic().
resume(Traffic = #traffic{operations = idle}) ->
    Traffic#traffic{operations = counters:new(length(?KINDS), [])};
resume(Traffic) ->
    Traffic.

place({received, connect}) -> 1;
place({received, ping}) -> 2;
place({received, pong}) -> 3;
place({received, pub}) -> 4;
place({received, hpub}) -> 5;
place({received, sub}) -> 6;
place({received, unsub}) -> 7;
place({sent, info}) -> 8;
place({sent, ok}) -> 9;
place({sent, err}) -> 10;
place({sent, ping}) -> 11;
place({sent, pong}) -> 12;
place({sent, msg}) -> 13;
place({sent, hmsg}) -> 14.

-spec count(kind(), non_neg_integer(), traffic()) -> ok.
count(_, _, #traffic{operations = Nothing}) when is_atom(Nothing) -> ok;
count(Kind, Number, #traffic{operations = Counters}) -> counters:add(Counters, place(Kind), Number).

%% The +OK of a verbose client.
-spec ok(Verbose :: boolean(), traffic()) -> iodata().
ok(false, _) ->
    [];
ok(true, Traffic) ->
    count({sent, ok}, 1, Traffic),
    ?OK.

%% The +OKs for this many operations.
-spec oks(non_neg_integer(), traffic()) -> iodata().
oks(Number, Traffic) ->
    count({sent, ok}, Number, Traffic),
    lists:duplicate(Number, ?OK).

%% A line of -ERR, or nothing.
-spec err(iodata(), traffic()) -> iodata().
err([], _) ->
    [];
err(Line, Traffic) ->
    count({sent, err}, 1, Traffic),
    Line.

%% Counts the operations that the client has sent.
-spec count_operations([nats_gateway_channel:input()], traffic()) -> ok.
count_operations(_, #traffic{operations = Nothing}) when is_atom(Nothing) -> ok;
count_operations(Ops, Traffic) -> count_operations(Ops, 0, 0, Traffic).

%% Most operations are messages in long runs, so each run is counted once.
count_operations([#pub{headers = undefined} | Ops], Pubs, HPubs, Traffic) ->
    count_operations(Ops, Pubs + 1, HPubs, Traffic);
count_operations([#pub{} | Ops], Pubs, HPubs, Traffic) ->
    count_operations(Ops, Pubs, HPubs + 1, Traffic);
count_operations([Op | Ops], Pubs, HPubs, Traffic) ->
    case kind(Op) of
        none -> ok;
        Kind -> count(Kind, 1, Traffic)
    end,
    count_operations(Ops, Pubs, HPubs, Traffic);
count_operations([], Pubs, HPubs, Traffic) ->
    Pubs > 0 andalso count({received, pub}, Pubs, Traffic),
    HPubs > 0 andalso count({received, hpub}, HPubs, Traffic),
    ok.

kind({connect, _}) -> {received, connect};
kind(ping) -> {received, ping};
kind(pong) -> {received, pong};
kind(#sub{}) -> {received, sub};
kind(#unsub{}) -> {received, unsub};
kind(_) -> none.

%% The operations since the last call.
-spec take_operations(traffic()) -> {[{kind(), pos_integer()}], traffic()}.
take_operations(Traffic = #traffic{operations = Nothing}) when is_atom(Nothing) ->
    {[], Traffic};
take_operations(Traffic = #traffic{operations = Counters}) ->
    Taken = [
        {Kind, counters:get(Counters, Place)}
     || {Place, Kind} <- lists:enumerate(?KINDS), counters:get(Counters, Place) > 0
    ],
    {Taken, Traffic#traffic{operations = idle}}.

-spec received(Messages :: non_neg_integer(), traffic()) -> traffic().
received(Number, Traffic = #traffic{received = Received}) ->
    Traffic#traffic{received = Received + Number}.

%% Counts messages that go to this many sids in all.
-spec delivered([#message{}], Sids :: non_neg_integer(), traffic()) -> traffic().
delivered(Messages, Count, Traffic = #traffic{sent = Sent, fanned_out = FannedOut}) ->
    ok = count_messages(Messages, Count, Traffic),
    Traffic#traffic{sent = Sent + Count, fanned_out = FannedOut + length(Messages)}.

count_messages(_, _, #traffic{operations = Nothing}) when is_atom(Nothing) ->
    ok;
count_messages(Messages, Count, Traffic) ->
    WithHeaders = lists:sum([
        length(Sids)
     || #message{sids = Sids, headers = Headers} <- Messages, has_headers(Headers)
    ]),
    count({sent, hmsg}, WithHeaders, Traffic),
    count({sent, msg}, Count - WithHeaders, Traffic).

%% An empty list of properties makes no header block.
has_headers(undefined) -> false;
has_headers({_, [], undefined}) -> false;
has_headers(_) -> true.

%% These messages were counted as delivered, but they are too long for a control line.
-spec too_long(Messages :: non_neg_integer(), traffic()) -> traffic().
too_long(0, Traffic) ->
    Traffic;
too_long(Number, Traffic = #traffic{sent = Sent, unroutable = Unroutable}) ->
    Traffic#traffic{sent = Sent - Number, unroutable = Unroutable + Number}.

-spec unroutable(Messages :: non_neg_integer(), traffic()) -> traffic().
unroutable(Number, Traffic = #traffic{unroutable = Unroutable}) ->
    Traffic#traffic{unroutable = Unroutable + Number}.

-spec sent(traffic()) -> non_neg_integer().
sent(#traffic{sent = Sent}) -> Sent.

-spec fanned_out(traffic()) -> non_neg_integer().
fanned_out(#traffic{fanned_out = FannedOut}) -> FannedOut.

-spec stats(traffic()) -> #{atom() => non_neg_integer()}.
stats(#traffic{received = Received, sent = Sent, unroutable = Unroutable}) ->
    #{messages_received => Received, messages_sent => Sent, messages_unroutable => Unroutable}.

%% The times of these give the round trip time.
-spec connected(traffic()) -> traffic().
connected(Traffic = #traffic{rtt = Rtt}) ->
    Traffic#traffic{rtt = nats_gateway_rtt:connected(erlang:monotonic_time(), Rtt)}.

-spec pinged(traffic()) -> traffic().
pinged(Traffic = #traffic{rtt = Rtt}) ->
    Traffic#traffic{rtt = nats_gateway_rtt:pinged(erlang:monotonic_time(), Rtt)}.

-spec ponged(traffic()) -> traffic().
ponged(Traffic = #traffic{rtt = Rtt}) ->
    Traffic#traffic{rtt = nats_gateway_rtt:ponged(erlang:monotonic_time(), Rtt)}.

-spec rtt(traffic()) -> unknown | pos_integer().
rtt(#traffic{rtt = Rtt}) -> nats_gateway_rtt:nanoseconds(Rtt).
