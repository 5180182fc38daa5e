%% The plugin's own page in EMQX's dashboard: the settings that EMQX's NATS page has no field for
%% (priv/config_schema.avsc draws the form), and what the page says of the plugin's health.
-module(nats_gateway_plugin_config).

-export([parse/1]).
-export([check/1]).
-export([check_stored/1]).
-export([get/0]).
-export([put/1]).
-export([in_force/1]).
-export([forget/0]).
-export([health_check/1]).
-export([diagnose/1]).

-export_type([settings/0, facts/0]).

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

%% What `diagnose/1' judges; `nats_gateway_emqx_plugin:facts/0' collects them.
-type facts() :: #{
    otp := pos_integer(),
    emqx := {non_neg_integer(), non_neg_integer()} | unknown,
    gateways := running | off,
    nats := undefined | module(),
    %% this application
    started := boolean(),
    nif := boolean(),
    settings := ok | {error, binary()},
    %% whether EMQX has loaded the gateway
    loaded := boolean(),
    %% where this plugin does not run: see `nats_gateway_emqx_built_in:judge/0'
    built_in := ok | {open, [Text :: binary()]} | logins_lost
}.

%% EMQX gives a plugin 10 s to stop, on every node.
-define(MAX_DRAIN_TIME_MS, 8000).

%% What decides who is let in. Settings without one of them were not saved by the page: they are the
%% beginning of a file that was cut, or were sent by somebody who did not think of it.
-define(DECIDING, [
    <<"internal_authn">>, <<"peer_cert_as_username">>, <<"websocket_same_origin">>
]).

-define(MIN_OTP, 25).
-define(MAX_OTP, 28).
-define(MIN_EMQX, {5, 10}).

-spec schema() -> nats_gateway_config:schema().
schema() ->
    Page = lists:foldl(fun maps:merge/2, #{}, [
        %% The built-in shakes hands first, so the clients that are there do, too.
        nats_gateway_config:tls_page_schema(auto),
        nats_gateway_config:websocket_page_schema(),
        nats_gateway_login_config:page_schema()
    ]),
    Page#{
        %% CONNECT is an operation too: below this nobody could log in
        max_control_line => {{bytes, 512, 1048576}, 4096},
        max_subscriptions => {{limit, 1 bsl 30}, 100000},
        max_sub_tokens => {{limit, 255}, infinity},
        authentication_timeout => {{duration, 1}, 2000},
        retained_on_subscribe => {boolean, false},
        auto_subscribe => {boolean, false},
        max_pending => {{bytes, 1024, 1 bsl 30}, 64 bsl 20},
        send_timeout => {{duration, 1}, 10000},
        drain_time => {{duration, 0, ?MAX_DRAIN_TIME_MS}, 1000},
        built_in_may_serve => {boolean, false}
    }.

-spec parse(map()) -> {ok, settings()} | {error, Text :: binary()}.
parse(Stored) ->
    case nats_gateway_config:check(schema(), Stored) of
        {ok, Settings} ->
            Login = nats_gateway_login_config:of_page(Settings),
            case {nats_gateway_config:check_tls_page(Settings), Login} of
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

%% The settings in force. EMQX tells us of changes, not of what it has stored when the plugin
%% starts.
-spec get() -> settings().
get() ->
    case persistent_term:get(?MODULE, undefined) of
        undefined ->
            Settings = in_force(nats_gateway_emqx_plugin:stored_config()),
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

-spec health_check(Options :: map()) -> ok | {error, Text :: binary()}.
health_check(_) -> diagnose(nats_gateway_emqx_plugin:facts()).

%% The first thing that is wrong, the causes before their consequences.
-spec diagnose(facts()) -> ok | {error, Text :: binary()}.
diagnose(#{otp := Otp}) when Otp < ?MIN_OTP; Otp > ?MAX_OTP ->
    wrong("Erlang/OTP ~b is not supported: ~b to ~b are", [Otp, ?MIN_OTP, ?MAX_OTP]);
diagnose(#{emqx := unknown}) ->
    wrong("the version of EMQX cannot be told: 5.10 and newer are supported", []);
diagnose(#{emqx := {Major, Minor}}) when {Major, Minor} < ?MIN_EMQX ->
    wrong("EMQX ~b.~b is not supported: 5.10 and newer are", [Major, Minor]);
diagnose(#{started := false, loaded := false}) ->
    wrong("NATS is not served: this plugin is not started", []);
diagnose(#{started := false}) ->
    wrong("NATS is served by EMQX's built-in gateway: this plugin is not started", []);
diagnose(#{nif := false}) ->
    wrong("the native library of this plugin cannot be loaded: is it built for this machine?", []);
diagnose(#{gateways := off}) ->
    wrong("the gateway application of EMQX is not running: NATS is not served", []);
diagnose(#{nats := undefined}) ->
    wrong("no gateway is registered under the name nats: restart the plugin", []);
diagnose(Facts = #{nats := Module}) ->
    case atom_to_binary(Module) of
        <<"nats_gateway_", _/binary>> ->
            diagnose_settings(Facts);
        Other ->
            wrong("the gateway nats is served by ~ts, not by this plugin: restart it", [Other])
    end.

diagnose_settings(#{settings := {error, Text}}) ->
    wrong("the stored settings are not valid, so nobody is let in: ~ts", [Text]);
diagnose_settings(#{built_in := logins_lost}) ->
    wrong(
        "the gateway nats has the authenticator that this plugin adds for the logins of its page, but "
        "the page has none, so nobody is let in: were they lost? To go on without, save the page", []
    );
diagnose_settings(#{built_in := {open, [What | _]}}) ->
    wrong(
        "where this plugin does not run, EMQX's built-in gateway does not ask for ~ts: give the "
        "gateway nats an authenticator (README: Where the plugin does not run)",
        [What]
    );
diagnose_settings(_) ->
    ok.

wrong(Format, Arguments) ->
    {error, unicode:characters_to_binary(io_lib:format(Format, Arguments))}.
