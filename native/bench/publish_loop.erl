%% EMQX without any client: what a gateway could reach at best. Loaded into the node.
-module(publish_loop).

-export([run/2]).

%% Messages per second of one process that publishes to a topic without subscribers.
-spec run(Messages :: pos_integer(), PayloadSize :: pos_integer()) -> float().
run(Messages, PayloadSize) ->
    Payload = binary:copy(<<"x">>, PayloadSize),
    {Pid, Monitor} = spawn_monitor(fun() ->
        Began = erlang:monotonic_time(nanosecond),
        ok = publish(Messages, Payload),
        exit({took, erlang:monotonic_time(nanosecond) - Began})
    end),
    receive
        {'DOWN', Monitor, process, Pid, {took, Nanoseconds}} -> Messages * 1.0e9 / Nanoseconds
    end.

publish(0, _) ->
    ok;
publish(N, Payload) ->
    [] = emqx_broker:publish(emqx_message:make(<<"load">>, 0, <<"load/bare/s0">>, Payload)),
    publish(N - 1, Payload).
