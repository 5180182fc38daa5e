%% The signals of the operating system, for `nats_gateway_control'.
-module(nats_gateway_signals).

-behaviour(gen_event).

-export([init/1, handle_event/2, handle_call/2]).

%% Replaces the handler that is told to leave.
init({_, _}) -> {ok, none}.

handle_event(sigquit, _) ->
    erlang:halt(0);
handle_event(Signal, State) ->
    ok = nats_gateway_control:signal(Signal),
    {ok, State}.

handle_call(_, State) -> {ok, ignored, State}.
