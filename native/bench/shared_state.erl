%% What all schedulers of a node share: tables, persistent terms, counters. Loaded into the node.
-module(shared_state).

-export([start/0, stop/0]).

-define(MODULES, [ets, persistent_term, counters, atomics]).

%% From now on, each call of one of these functions counts, by whatever process.
-spec start() -> ok.
start() ->
    _ = [erlang:trace_pattern(Function, true, [call_count]) || Function <- functions()],
    ok.

%% How often each function was called that was.
-spec stop() -> [{module(), Function :: atom(), arity(), Calls :: pos_integer()}].
stop() ->
    Counted = [{Function, erlang:trace_info(Function, call_count)} || Function <- functions()],
    _ = [erlang:trace_pattern(Function, false, [call_count]) || Function <- functions()],
    lists:reverse(
        lists:keysort(4, [
            {Module, Name, Arity, Calls}
         || {{Module, Name, Arity}, {call_count, Calls}} <- Counted, is_integer(Calls), Calls > 0
        ])
    ).

functions() ->
    _ = [code:ensure_loaded(Module) || Module <- ?MODULES],
    [
        {Module, Name, Arity}
     || Module <- ?MODULES, {Name, Arity} <- Module:module_info(exports), Name =/= module_info
    ].
