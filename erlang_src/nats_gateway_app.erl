-module(nats_gateway_app).

-behaviour(application).

-export([start/2]).
-export([prep_stop/1]).
-export([stop/1]).

-spec start(application:start_type(), term()) -> {ok, pid()} | {error, term()}.
start(_, _) ->
    {module, _} = code:ensure_loaded(nats_gateway_nif),
    nats_gateway_sup:start_link().

%% The clients are told to go elsewhere before their sockets are closed.
-spec prep_stop(State) -> State when State :: term().
prep_stop(State) ->
    lists:foreach(
        fun({_, Listener}) ->
            lists:foreach(
                fun nats_gateway_connection:drain/1, nats_gateway_listener:connections(Listener)
            )
        end,
        nats_gateway_sup:listeners()
    ),
    State.

-spec stop(term()) -> ok.
stop(_) -> ok.
