%% The health check of the plugin, which EMQX shows on the plugin's page. All calls to EMQX are made
%% by name, because this can be any version of EMQX and parts of it may not run.
-module(nats_gateway_emqx_health).

-export([health_check/1]).
%% For tests
-export([diagnose/1]).

%% `facts/0' collects these, and `diagnose/1' judges them.
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
    %% for places where this plugin does not run: see `nats_gateway_emqx_built_in:judge/0'
    built_in := ok | {open, [Text :: binary()]} | logins_lost
}.

-define(MIN_EMQX, {5, 10}).

-spec health_check(Options :: map()) -> ok | {error, Text :: binary()}.
health_check(_) -> diagnose(facts()).

%% Returns the first problem. Causes are checked before their consequences.
-spec diagnose(facts()) -> ok | {error, Text :: binary()}.
diagnose(Facts = #{otp := Otp}) ->
    case nats_gateway_emqx_compat:otp_problem(Otp) of
        none -> diagnose_emqx(Facts);
        Problem -> wrong("~ts", [Problem])
    end.

diagnose_emqx(#{emqx := unknown}) ->
    wrong("the version of EMQX cannot be told: 5.10 and newer are supported", []);
diagnose_emqx(#{emqx := {Major, Minor}}) when {Major, Minor} < ?MIN_EMQX ->
    wrong("EMQX ~b.~b is not supported: 5.10 and newer are", [Major, Minor]);
diagnose_emqx(#{started := false, loaded := false}) ->
    wrong("NATS is not served: this plugin is not started", []);
diagnose_emqx(#{started := false}) ->
    wrong("NATS is served by EMQX's built-in gateway: this plugin is not started", []);
diagnose_emqx(#{nif := false}) ->
    wrong("the native library of this plugin cannot be loaded: is it built for this machine?", []);
diagnose_emqx(#{gateways := off}) ->
    wrong("the gateway application of EMQX is not running: NATS is not served", []);
diagnose_emqx(#{nats := undefined}) ->
    wrong("no gateway is registered under the name nats: restart the plugin", []);
diagnose_emqx(Facts = #{nats := Module}) ->
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
        "gateway nats an authenticator (docs/emqx.md: Where the plugin does not run)",
        [What]
    );
diagnose_settings(_) ->
    ok.

wrong(Format, Arguments) ->
    {error, unicode:characters_to_binary(io_lib:format(Format, Arguments))}.

%% -------------------------------------------------------------------------------------------

-spec facts() -> facts().
facts() ->
    Started = is_pid(whereis(nats_gateway_emqx_takeover)),
    #{
        otp => list_to_integer(erlang:system_info(otp_release)),
        emqx => emqx_version(),
        gateways => gateways(),
        nats => nats(),
        started => Started,
        nif => is_nif_loaded(),
        settings => settings(Started),
        loaded => is_loaded(),
        built_in => built_in(Started)
    }.

%% A stopped plugin has no native library that could check the settings.
settings(false) ->
    ok;
settings(true) ->
    case nats_gateway_emqx_page:check_stored(nats_gateway_emqx_page:stored()) of
        {ok, _} -> ok;
        {error, Text} -> {error, Text}
    end.

built_in(false) ->
    ok;
built_in(true) ->
    case call(nats_gateway_emqx_built_in, judge, []) of
        {ok, Judgement} -> Judgement;
        error -> ok
    end.

is_loaded() ->
    case call(emqx_gateway, lookup, [nats]) of
        {ok, Gateway} when is_map(Gateway) -> true;
        _ -> false
    end.

emqx_version() ->
    case call(emqx_release, version, []) of
        {ok, Version} ->
            case re:run(Version, "^([0-9]+)\\.([0-9]+)", [{capture, all_but_first, list}]) of
                {match, [Major, Minor]} -> {list_to_integer(Major), list_to_integer(Minor)};
                nomatch -> unknown
            end;
        error ->
            unknown
    end.

gateways() ->
    case lists:keymember(emqx_gateway, 1, application:which_applications()) of
        true -> running;
        false -> off
    end.

%% The callback module of the gateway that is registered under our name.
nats() ->
    case call(emqx_gateway_registry, lookup, [nats]) of
        {ok, #{cbkmod := Module}} -> Module;
        _ -> undefined
    end.

is_nif_loaded() ->
    case call(nats_gateway_nif, topic, [<<"a">>, <<>>]) of
        {ok, <<"a">>} -> true;
        _ -> false
    end.

%% The health check must not crash if a function does not exist or a process does not answer.
call(Module, Function, Arguments) ->
    try
        {ok, apply(Module, Function, Arguments)}
    catch
        _:_ -> error
    end.
