%% The application: the standalone gateway, or the gateway `nats' of the EMQX node in which it is
%% started.
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
        true -> start_in_emqx(nats_gateway_emqx_compat:supported());
        false -> start_alone(nats_gateway_nif:load())
    end.

%% The plugin loader loads the modules of a plugin, but not those of EMQX. So they are loaded only
%% inside of EMQX.
is_in_emqx() -> code:is_loaded(emqx) =/= false.

start_in_emqx(ok) ->
    %% Without the library no client is served. But if clients have to log in, EMQX's built-in
    %% gateway must not serve in our place.
    case nats_gateway_nif_loader:acquire() of
        ok ->
            ok = nats_gateway_emqx_stored:complete(),
            start_sup_in_emqx();
        {error, Text} ->
            case nats_gateway_emqx_built_in:may_serve() of
                true -> refuse({native_library, Text});
                {false, _} -> start_sup_in_emqx()
            end
    end;
start_in_emqx({error, Reason}) ->
    refuse(Reason).

start_sup_in_emqx() ->
    ok = nats_gateway_emqx_compat:init(),
    {ok, Pid} = nats_gateway_sup:start_link([
        nats_gateway_emqx_takeover:child_spec(), nats_gateway_emqx_old_code:child_spec()
    ]),
    {ok, Pid, emqx}.

%% The modules of a refused plugin stay loaded. Its next start loads them again.
refuse(Reason) ->
    ok = nats_gateway_emqx_page:forget(),
    ok = nats_gateway_nif_loader:release(),
    {error, Reason}.

start_alone(ok) ->
    nats_gateway_sup:start_link([
        nats_gateway_upstream:child_spec(),
        #{id => nats_gateway_mqtt_revisions, start => {nats_gateway_mqtt_revisions, start_link, []}}
    ]);
start_alone({error, Text}) -> {error, {native_library, Text}}.

%% The clients are told to go elsewhere before their sockets are closed.
-spec prep_stop(State) -> State when State :: term().
prep_stop(State = emqx) ->
    State;
prep_stop(State) ->
    lists:foreach(fun nats_gateway_connection:drain/1, nats_gateway_listener:connections()),
    State.

%% The connections are gone, so no process runs in the library any more.
-spec stop(term()) -> ok.
stop(emqx) ->
    ok = nats_gateway_emqx_page:forget(),
    ok = nats_gateway_emqx_compat:forget(),
    ok = nats_gateway_emqx_prometheus:forget(),
    ok = nats_gateway_emqx_monitor:forget(),
    nats_gateway_nif_loader:release();
stop(_) ->
    ok.

%% EMQX calls this on every node before the settings of the plugin's page are saved, even if the
%% application is not started.
-spec on_config_changed(Old :: map(), New :: map()) -> ok | {error, Text :: binary()}.
on_config_changed(Old, New) ->
    case nats_gateway_emqx_stored:check_change(Old, New) of
        {ok, Settings} -> apply_settings(Settings, Old, whereis(nats_gateway_emqx_takeover));
        completed -> ok;
        {error, Text} -> {error, Text}
    end.

%% If the application is not started, its next start reads what is stored. EMQX also calls this
%% when it loads the plugin, with the settings that it has found stored; then it knows no older
%% settings.
apply_settings(_, Old, undefined) when map_size(Old) > 0 ->
    nats_gateway_emqx_takeover:settings_stored(saved);
apply_settings(_, _, undefined) ->
    nats_gateway_emqx_takeover:settings_stored(found);
apply_settings(Settings, Old, _) ->
    case nats_gateway_emqx:check_page(Settings) of
        ok ->
            ok = nats_gateway_emqx_page:note_save(map_size(Old) > 0),
            ok = nats_gateway_emqx_page:put(Settings),
            ok = nats_gateway_emqx:settings_changed(),
            nats_gateway_emqx_takeover:settings_changed();
        {error, Text} ->
            {error, Text}
    end.

-spec on_health_check(Options :: map()) -> ok | {error, Text :: binary()}.
on_health_check(Options) -> nats_gateway_emqx_health:health_check(Options).
