%% How often processes of a node are scheduled, and on another scheduler than before. Loaded into the node.
-module(schedulings).

-export([start/0, stop/0]).

%% From now on, of all processes.
-spec start() -> ok.
start() ->
    Tracer = spawn(fun() -> count(#{}, 0, 0) end),
    register(?MODULE, Tracer),
    _ = erlang:trace(processes, true, [running, scheduler_id, {tracer, Tracer}]),
    ok.

-spec stop() -> {Scheduled :: non_neg_integer(), Moved :: non_neg_integer()}.
stop() ->
    Delivered = erlang:trace_delivered(all),
    receive
        {trace_delivered, all, Delivered} -> ok
    end,
    _ = erlang:trace(processes, false, [running, scheduler_id]),
    ?MODULE ! {stop, self()},
    receive
        {?MODULE, Scheduled, Moved} -> {Scheduled, Moved}
    end.

%% `Places' has the scheduler on which each process was last.
count(Places, Scheduled, Moved) ->
    receive
        {trace, Pid, in, _, Scheduler} ->
            case Places of
                #{Pid := Scheduler} -> count(Places, Scheduled + 1, Moved);
                #{Pid := _} -> count(Places#{Pid := Scheduler}, Scheduled + 1, Moved + 1);
                #{} -> count(Places#{Pid => Scheduler}, Scheduled + 1, Moved)
            end;
        {stop, From} ->
            From ! {?MODULE, Scheduled, Moved};
        _ ->
            count(Places, Scheduled, Moved)
    end.
