%% The plugin's own page in EMQX's dashboard: the settings that EMQX's NATS page has no field for
%% (priv/config_schema.avsc draws the form).
-module(nats_gateway_emqx_page).

-export([parse/1]).
-export([check/1]).
-export([check_stored/1]).
-export([stored/0]).
-export([get/0]).
-export([put/1]).
-export([in_force/1]).
-export([forget/0]).

-export_type([settings/0]).

-include_lib("kernel/include/logger.hrl").

%% Times are milliseconds, sizes bytes.
-type settings() :: #{
    max_control_line := pos_integer(),
    max_subscriptions := pos_integer() | infinity,
    max_sub_tokens := pos_integer() | infinity,
    authentication_timeout := pos_integer(),
    retained_on_subscribe := boolean(),
    auto_subscribe := boolean(),
    %% slow consumers: bytes that may wait for one client, and how long it may take none of them
    max_pending := pos_integer(),
    send_timeout := pos_integer(),
    %% from the lame duck INFO to the close, at plugin stop
    drain_time := non_neg_integer(),
    %% of the `ssl' listeners
    tls_mode := nats_gateway_tls:mode(),
    allow_non_tls := boolean(),
    handshake_first_wait := pos_integer(),
    peer_cert_as_username := nats_gateway_certificate:name(),
    %% for gateways whose own settings have no `internal_authn'
    login := nats_gateway_login:login(),
    %% of the `ws' and `wss' listeners
    websocket_same_origin := boolean(),
    websocket_jwt_cookie := undefined | binary(),
    %% where this plugin does not run, although clients have to log in
    built_in_may_serve := boolean()
}.

%% EMQX gives a plugin 10 s to stop, on every node.
-define(MAX_DRAIN_TIME_MS, 8000).

%% What decides who is let in. Settings without one of them were not saved by the page: they are the
%% beginning of a file that was cut, or were sent by somebody who did not think of it.
-define(DECIDING, [
    <<"internal_authn">>, <<"peer_cert_as_username">>, <<"websocket_same_origin">>
]).

%% Settings of the page that are no other ones here.
-define(AS_ANYWHERE, [
    max_subscriptions,
    max_sub_tokens,
    authentication_timeout,
    retained_on_subscribe,
    max_pending,
    send_timeout
]).

-spec schema() -> nats_gateway_schema:schema().
schema() ->
    Anywhere = #{max_control_line := {_, MaxControlLine}} = nats_gateway_config:schema(),
    Page = lists:foldl(fun maps:merge/2, #{}, [
        maps:with(?AS_ANYWHERE, Anywhere),
        %% The built-in shakes hands first, so the clients that are there do, too.
        nats_gateway_listener_config:tls_page_schema(auto),
        nats_gateway_listener_config:websocket_page_schema(),
        nats_gateway_login_config:page_schema()
    ]),
    Page#{
        %% CONNECT is an operation too: below this nobody could log in
        max_control_line => {{bytes, 512, 1048576}, MaxControlLine},
        auto_subscribe => {boolean, false},
        drain_time => {{duration, 0, ?MAX_DRAIN_TIME_MS}, 1000},
        built_in_may_serve => {boolean, false}
    }.

-spec parse(map()) -> {ok, settings()} | {error, Text :: binary()}.
parse(Stored) ->
    case nats_gateway_schema:check(schema(), Stored) of
        {ok, Settings} ->
            Login = nats_gateway_login_config:of_page(Settings),
            case {nats_gateway_listener_config:check_tls_page(Settings), Login} of
                {ok, {ok, Known}} ->
                    Others = maps:without(nats_gateway_login_config:page_keys(), Settings),
                    {ok, Others#{login => Known}};
                {{error, Text}, _} ->
                    {error, Text};
                {_, {error, Text}} ->
                    {error, Text}
            end;
        {error, Text} ->
            {error, Text}
    end.

%% Settings that are to be saved.
-spec check(New :: map()) -> {ok, settings()} | {error, Text :: binary()}.
check(New) ->
    case [Key || Key <- ?DECIDING, not is_map_key(Key, New)] of
        [] ->
            try
                parse(New)
            catch
                error:not_loaded ->
                    {error, <<"cannot be checked without the native library">>};
                %% Whoever logs the reason, or the arguments of the functions, logs secrets.
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

%% As the page saved it. EMQX's own answer for settings that it could not read, or that its schema
%% of this plugin refuses, would be an empty map. One that is empty was never saved: it is the rest
%% of a file that was lost.
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

name_vsn() ->
    case application:get_key(nats_gateway, vsn) of
        {ok, Vsn} -> iolist_to_binary([<<"nats_gateway-">>, Vsn]);
        undefined -> <<"nats_gateway">>
    end.

%% The settings in force. EMQX tells us of changes, not of what it has stored when the plugin
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

%% Settings that are not valid, or cannot be read, may have been such that nobody was let in without
%% a login. So nobody is.
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

%% At the end of the application: the next start reads what is stored then.
-spec forget() -> ok.
forget() ->
    _ = persistent_term:erase(?MODULE),
    ok.
