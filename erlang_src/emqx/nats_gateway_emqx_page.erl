%% The plugin's own page in EMQX's dashboard. It has the settings for which EMQX's NATS page has no
%% field. (priv/config_schema.avsc describes the form.)
-module(nats_gateway_emqx_page).

-export([keys/0]).
-export([parse/1]).
-export([check/1]).
-export([check_stored/1]).
-export([stored/0]).
-export([name_vsn/0]).
-export([get/0]).
-export([put/1]).
-export([note_save/1]).
-export([was_saved_within/1]).
-export([in_force/1]).
-export([forget/0]).

-export_type([settings/0]).

-include_lib("kernel/include/logger.hrl").

%% Times are in milliseconds, sizes in bytes.
-type settings() :: #{
    max_control_line := pos_integer(),
    max_subscriptions := pos_integer() | infinity,
    max_sub_tokens := pos_integer() | infinity,
    authentication_timeout := pos_integer(),
    retained_on_subscribe := boolean(),
    publish_properties := boolean(),
    show_properties := boolean(),
    auto_subscribe := boolean(),
    %% slow consumers: how many bytes may wait for one client, and how long it may take none of them
    max_pending := pos_integer(),
    send_timeout := pos_integer(),
    %% time from the lame duck INFO to the close, when the plugin stops
    drain_time := non_neg_integer(),
    %% for the `ssl' listeners
    tls_mode := nats_gateway_tls:mode(),
    allow_non_tls := boolean(),
    handshake_first_wait := pos_integer(),
    peer_cert_as_username := nats_gateway_certificate:name(),
    %% used where the gateway's own settings have no `internal_authn'
    login := nats_gateway_login:login(),
    %% who may ask below `$SYS.REQ.SERVER'
    system := nats_gateway_system_access:access(),
    presence := nats_gateway_presence:settings(),
    %% devices that answer on a topic of their own
    devices := nats_gateway_device_config:devices(),
    %% the prefix of each bucket of the key/value store
    kv := nats_gateway_kv_bucket:buckets(),
    %% rules that map subjects
    mappings := nats_gateway_nif:mappings(),
    %% for the `ws' and `wss' listeners
    websocket_same_origin := boolean(),
    websocket_jwt_cookie := undefined | binary(),
    %% where the gateway can be watched
    monitor_bind := nats_gateway_monitor:bind(),
    %% whether EMQX's own endpoint for Prometheus has the gateway's metrics
    emqx_prometheus := boolean(),
    %% whether the built-in may serve where this plugin does not run, although clients have to log
    %% in
    built_in_may_serve := boolean()
}.

%% EMQX gives a plugin 10 s to stop, on every node.
-define(MAX_DRAIN_TIME_MS, 8000).

%% When somebody saved them, if that was since the start.
-define(SAVED, {?MODULE, saved}).

%% These settings decide who is let in. If one of them is missing, the page has not saved the
%% settings: the file was cut, or somebody sent settings without thinking of it.
-define(DECIDING, [
    <<"internal_authn">>, <<"peer_cert_as_username">>, <<"websocket_same_origin">>
]).

%% Settings that are the same on the page as in `nats_gateway_config'.
-define(AS_ANYWHERE, [
    max_subscriptions,
    max_sub_tokens,
    authentication_timeout,
    retained_on_subscribe,
    publish_properties,
    show_properties,
    max_pending,
    send_timeout
]).

-spec schema() -> nats_gateway_schema:schema().
schema() ->
    Anywhere = #{max_control_line := {_, MaxControlLine}} = nats_gateway_config:schema(),
    Page = lists:foldl(fun maps:merge/2, #{}, [
        maps:with(?AS_ANYWHERE, Anywhere),
        %% The built-in starts with the TLS handshake, so clients of today do, too.
        nats_gateway_listener_config:tls_page_schema(auto),
        nats_gateway_listener_config:websocket_page_schema(),
        nats_gateway_login_config:page_schema(),
        nats_gateway_login_config:system_page_schema(),
        nats_gateway_presence:page_schema(),
        nats_gateway_device_config:page_schema(),
        nats_gateway_kv_bucket:page_schema(),
        nats_gateway_mapping_config:page_schema()
    ]),
    Page#{
        %% CONNECT is an operation too: with less, nobody could log in
        max_control_line => {{bytes, 512, 1048576}, MaxControlLine},
        auto_subscribe => {boolean, false},
        drain_time => {{duration, 0, ?MAX_DRAIN_TIME_MS}, 1000},
        monitor_bind => {fun monitor_bind/2, undefined},
        emqx_prometheus => {boolean, false},
        built_in_may_serve => {boolean, false}
    }.

-spec keys() -> [Key :: binary()].
keys() -> [atom_to_binary(Key) || Key <- lists:sort(maps:keys(schema()))].

monitor_bind(<<>>, _) -> undefined;
monitor_bind(Value, Path) -> nats_gateway_schema:value(address, Value, Path).

-spec parse(map()) -> {ok, settings()} | {error, Text :: binary()}.
parse(Stored) ->
    case nats_gateway_schema:check(schema(), Stored) of
        {ok, Settings} ->
            Login = nats_gateway_login_config:of_page(Settings),
            Kv = nats_gateway_kv_bucket:of_page(Settings),
            case {nats_gateway_listener_config:check_tls_page(Settings), Login, Kv} of
                {ok, {ok, Known}, {ok, Buckets}} ->
                    System = nats_gateway_login_config:system_of_page(Settings),
                    NotKept =
                        nats_gateway_login_config:page_keys() ++
                            maps:keys(nats_gateway_login_config:system_page_schema()) ++
                            maps:keys(nats_gateway_presence:page_schema()) ++
                            nats_gateway_device_config:page_keys() ++
                            nats_gateway_mapping_config:page_keys() ++
                            maps:keys(nats_gateway_kv_bucket:page_schema()),
                    {ok, (maps:without(NotKept, Settings))#{
                        login => Known,
                        system => System,
                        presence => nats_gateway_presence:of_page(Settings),
                        devices => nats_gateway_device_config:of_page(Settings),
                        mappings => nats_gateway_mapping_config:of_page(Settings),
                        kv => Buckets
                    }};
                {{error, Text}, _, _} ->
                    {error, Text};
                {_, {error, Text}, _} ->
                    {error, Text};
                {_, _, {error, Text}} ->
                    {error, Text}
            end;
        {error, Text} ->
            {error, Text}
    end.

%% Checks settings before they are saved.
-spec check(New :: map()) -> {ok, settings()} | {error, Text :: binary()}.
check(New) ->
    case [Key || Key <- ?DECIDING, not is_map_key(Key, New)] of
        [] ->
            try
                parse(New)
            catch
                error:not_loaded ->
                    {error, <<"cannot be checked without the native library">>};
                %% The reason and the arguments of the functions hold secrets, so they must not be
                %% logged.
                _:_ ->
                    {error, <<"could not be checked">>}
            end;
        [Key | _] ->
            {error, <<Key/binary, ": must be there, because it decides who is let in">>}
    end.

-spec check_stored({ok, Stored :: map()} | {error, Text}) -> {ok, settings()} | {error, Text} when
    Text :: binary().
check_stored({ok, Stored}) -> check(Stored);
check_stored({error, Text}) -> {error, Text}.

%% The settings as the page saved them. EMQX returns an empty map for settings that it cannot read,
%% or that its schema of this plugin refuses. The page never saves an empty map: it is what is left
%% of a lost file.
-spec stored() -> {ok, map()} | {error, Text :: binary()}.
stored() ->
    try emqx_plugins:get_config(name_vsn(), unreadable) of
        Stored when is_map(Stored), map_size(Stored) > 0 -> {ok, Stored};
        Stored when is_map(Stored) -> {error, <<"config.hocon of this plugin is lost or empty">>};
        _ -> unreadable()
    catch
        _:_ -> unreadable()
    end.

unreadable() -> {error, <<"config.hocon of this plugin cannot be read, EMQX's log says why">>}.

%% The name under which EMQX knows this version of the plugin.
-spec name_vsn() -> binary().
name_vsn() ->
    case application:get_key(nats_gateway, vsn) of
        {ok, Vsn} -> iolist_to_binary([<<"nats_gateway-">>, Vsn]);
        undefined -> <<"nats_gateway">>
    end.

%% The settings in force. EMQX tells us about changes, but not what it has stored when the plugin
%% starts.
-spec get() -> settings().
get() ->
    case persistent_term:get(?MODULE, undefined) of
        undefined ->
            Settings = in_force(stored()),
            ok = put(Settings),
            Settings;
        Settings ->
            Settings
    end.

-spec put(settings()) -> ok.
put(Settings) -> persistent_term:put(?MODULE, Settings).

%% Whether somebody has just saved the settings, or they were found stored and may have lost some.
-spec note_save(IsSaved :: boolean()) -> ok.
note_save(true) ->
    persistent_term:put(?SAVED, erlang:monotonic_time(millisecond));
note_save(false) ->
    _ = persistent_term:erase(?SAVED),
    ok.

-spec was_saved_within(Ms :: pos_integer()) -> boolean().
was_saved_within(Ms) ->
    case persistent_term:get(?SAVED, never) of
        never -> false;
        At -> erlang:monotonic_time(millisecond) - At < Ms
    end.

%% Settings that are not valid or cannot be read may have demanded a login from everybody. So nobody
%% is let in.
-spec in_force({ok, Stored :: map()} | {error, Text :: binary()}) -> settings().
in_force(Stored) ->
    case check_stored(Stored) of
        {ok, Settings} ->
            Settings;
        {error, Text} ->
            ?LOG_ERROR(#{
                msg => "stored_plugin_settings_are_not_valid",
                reason => Text,
                consequence => "nobody is let in by logins of this plugin"
            }),
            {ok, Defaults} = parse(#{}),
            Defaults#{
                login := nats_gateway_login:nobody(), built_in_may_serve := lets_built_in(Stored)
            }
    end.

lets_built_in({ok, #{<<"built_in_may_serve">> := true}}) -> true;
lets_built_in(_) -> false.

%% Called when the application ends. The next start reads what is stored then.
-spec forget() -> ok.
forget() ->
    _ = persistent_term:erase(?MODULE),
    note_save(false).
