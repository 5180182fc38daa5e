%% The application: the standalone gateway, or the gateway `nats' of the EMQX node it is started in.
-module(nats_gateway_app).

-behaviour(application).

-export([start/2]).
-export([prep_stop/1]).
-export([stop/1]).
%% EMQX's callbacks of a plugin
-export([on_config_changed/2]).
-export([on_health_check/1]).

-spec start(application:start_type(), term()) ->
    {ok, pid()} | {ok, pid(), State :: emqx} | {error, term()}.
start(_, _) ->
    case is_in_emqx() of
        true ->
            case nats_gateway_emqx_compat:supported() of
                ok ->
                    ok = load_nif(),
                    ok = nats_gateway_emqx_compat:init(),
                    {ok, Pid} = nats_gateway_sup:start_link([
                        nats_gateway_emqx_takeover:child_spec()
                    ]),
                    {ok, Pid, emqx};
                {error, Reason} ->
                    {error, Reason}
            end;
        false ->
            ok = load_nif(),
            nats_gateway_sup:start_link([nats_gateway_upstream:child_spec()])
    end.

%% The plugin loader loads the modules of a plugin, not those of EMQX: they are there or not.
is_in_emqx() -> code:is_loaded(emqx) =/= false.

%% Every module of a release is loaded at boot, so one that was purged is not loaded by need.
load_nif() ->
    case code:is_loaded(nats_gateway_nif) of
        false ->
            {module, _} = code:load_file(nats_gateway_nif),
            ok;
        _ ->
            ok
    end.

%% The clients are told to go elsewhere before their sockets are closed.
-spec prep_stop(State) -> State when State :: term().
prep_stop(State = emqx) ->
    State;
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

%% The library of the NIF can be loaded again only after it was unloaded, with both generations of
%% its module. Nobody runs in them any more: the connections are gone.
-spec stop(term()) -> ok.
stop(emqx) ->
    ok = nats_gateway_plugin_config:forget(),
    ok = nats_gateway_emqx_compat:forget(),
    _ = code:purge(nats_gateway_nif),
    _ = code:delete(nats_gateway_nif),
    _ = code:purge(nats_gateway_nif),
    ok;
stop(_) ->
    ok.

%% Called on every node before the settings of the plugin's page are saved, also where the
%% application is not started.
-spec on_config_changed(Old :: map(), New :: map()) -> ok | {error, Text :: binary()}.
on_config_changed(Old, New) ->
    case nats_gateway_plugin_config:on_config_changed(Old, New) of
        ok -> nats_gateway_emqx:settings_changed();
        {error, Text} -> {error, Text}
    end.

-spec on_health_check(Options :: map()) -> ok | {error, Text :: binary()}.
on_health_check(Options) -> nats_gateway_plugin_config:health_check(Options).
