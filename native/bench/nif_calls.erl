%% How long calls of the gateway's NIF keep a scheduler. Loaded into the node.
-module(nif_calls).

-export([run/1]).

-include("nats_gateway.hrl").

-define(NIF, nats_gateway_nif).
-define(DECODER, #decoder{
    max_control_line = 4096,
    max_payload = 1048576,
    phase = open,
    headers = true,
    mountpoint = <<"mountpoint/">>
}).

%% The longest call of each kind of work in microseconds. Each call of it counts with the shortest of
%% so many repetitions: what the operating system takes for itself is in single ones.
-spec run(Repetitions :: pos_integer()) -> [{string(), float()}].
run(Repetitions) ->
    [
        {Name, lists:max(shortest([calls(Work) || _ <- lists:seq(1, Repetitions)])) / 1000}
     || {Name, Work} <- work()
    ].

shortest([First | Others]) ->
    lists:foldl(fun(Calls, Shortest) -> lists:zipwith(fun min/2, Calls, Shortest) end, First, Others).

work() ->
    Tiny = chunk(<<"PUB a 1\r\nx\r\n">>, 65536),
    Small = chunk([<<"PUB sensors.room12 128\r\n">>, payload(128), <<"\r\n">>], 65536),
    Requests = chunk([<<"PUB sensors.room12 _INBOX.abc.1 16\r\n">>, payload(16), <<"\r\n">>], 1 bsl 20),
    Large = iolist_to_binary([<<"PUB sensors.room12 1048576\r\n">>, payload(1048576), <<"\r\n">>]),
    Sids = [integer_to_binary(N) || N <- lists:seq(1, 100000)],
    Deliver = fun(To, Size) ->
        #message{topic = <<"a/b">>, sids = To, reply = undefined, headers = undefined, payload = payload(Size)}
    end,
    [
        {"decode 64 KiB of 1 B messages", fun() -> decode(Tiny) end},
        {"decode 64 KiB of 128 B messages", fun() -> decode(Small) end},
        {"decode 1 MiB of requests of 16 B", fun() -> decode(Requests) end},
        {"decode a message of 1 MiB", fun() -> decode(Large) end},
        {"encode 1000 messages of 128 B", encoder(lists:duplicate(1000, Deliver([<<"1">>], 128)))},
        {"encode 1000 messages of 4095 B", encoder(lists:duplicate(1000, Deliver([<<"1">>], 4095)))},
        {"encode 100 messages of 1 MiB", encoder(lists:duplicate(100, Deliver([<<"1">>], 1048576)))},
        {"encode a message for 100000 subscriptions", encoder([Deliver(Sids, 128)])}
    ].

payload(Size) -> binary:copy(<<"x">>, Size).

chunk(Line, Size) ->
    binary:copy(iolist_to_binary(Line), Size div iolist_size(Line)).

encoder(Deliveries) -> fun() -> encode(Deliveries) end.

decode(Bytes) ->
    case timed(fun() -> ?NIF:decode(Bytes, ?DECODER) end) of
        {Took, {ok, _, Rest, 0}} when Rest =/= <<>> -> [Took | decode(Rest)];
        {Took, {ok, _, <<>>, _}} -> [Took]
    end.

encode(Deliveries) ->
    case timed(fun() -> ?NIF:encode(Deliveries, <<"a/">>) end) of
        {Took, {_, 0, []}} -> [Took];
        {Took, {_, 0, Rest}} -> [Took | encode(Rest)]
    end.

calls(Work) ->
    %% Garbage of other work is not to be collected within a call.
    {Pid, Monitor} = spawn_opt(
        fun() -> exit({took, Work()}) end, [
            monitor, {min_heap_size, 4000000}, {min_bin_vheap_size, 100000000}
        ]
    ),
    receive
        {'DOWN', Monitor, process, Pid, {took, Nanoseconds}} -> Nanoseconds;
        {'DOWN', Monitor, process, Pid, Reason} -> error(Reason)
    end.

timed(Call) ->
    Before = erlang:monotonic_time(nanosecond),
    Result = Call(),
    {erlang:monotonic_time(nanosecond) - Before, Result}.
