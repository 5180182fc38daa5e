%% Waits until other processes have ended.
-module(nats_gateway_emqx_down).

-export([await/2]).

%% Waits at most `Milliseconds' for all of them together. The calling process owns `Monitors'.
-spec await([reference()], Milliseconds :: non_neg_integer()) -> ok.
await(Monitors, Ms) -> await_until(Monitors, erlang:monotonic_time(millisecond) + Ms).

await_until(Monitors, Deadline) ->
    lists:foreach(
        fun(Monitor) ->
            receive
                {'DOWN', Monitor, process, _, _} -> ok
            after max(0, Deadline - erlang:monotonic_time(millisecond)) ->
                demonitor(Monitor, [flush])
            end
        end,
        Monitors
    ).
