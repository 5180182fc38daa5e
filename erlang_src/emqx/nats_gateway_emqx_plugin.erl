%% What the plugin page asks of the EMQX it runs in. Everything is looked up at run time: outside
%% of EMQX there is none of it.
-module(nats_gateway_emqx_plugin).

-export([stored_config/0]).
-export([facts/0]).

-ignore_xref([
    {emqx_plugins, get_config, 2},
    {emqx_release, version, 0},
    {emqx_gateway, lookup, 1},
    {emqx_gateway_registry, lookup, 1}
]).

%% As the page saved it. EMQX's own answer for settings that it could not read, or that its schema
%% of this plugin refuses, would be an empty map. One that is empty was never saved: it is the rest
%% of a file that was lost.
-spec stored_config() -> {ok, map()} | {error, Text :: binary()}.
stored_config() ->
    case call(emqx_plugins, get_config, [name_vsn(), unreadable]) of
        {ok, Stored} when is_map(Stored), map_size(Stored) > 0 -> {ok, Stored};
        {ok, Stored} when is_map(Stored) -> {error, <<"config.hocon of this plugin is lost or empty">>};
        _ -> {error, <<"config.hocon of this plugin cannot be read, EMQX's log says why">>}
    end.

name_vsn() ->
    case application:get_key(nats_gateway, vsn) of
        {ok, Vsn} -> iolist_to_binary([<<"nats_gateway-">>, Vsn]);
        undefined -> <<"nats_gateway">>
    end.

-spec facts() -> nats_gateway_plugin_config:facts().
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

%% A stopped plugin has no native library to check them with.
settings(false) ->
    ok;
settings(true) ->
    case nats_gateway_plugin_config:check_stored(stored_config()) of
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

%% Not there, or too busy to answer: the health check must not crash on it.
call(Module, Function, Arguments) ->
    try
        {ok, apply(Module, Function, Arguments)}
    catch
        _:_ -> error
    end.
