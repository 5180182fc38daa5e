%% What the plugin page asks of the EMQX it runs in. Everything is looked up at run time: outside
%% of EMQX there is none of it.
-module(nats_gateway_emqx_plugin).

-export([stored_config/0]).
-export([facts/0]).

-ignore_xref([
    {emqx_plugins, get_config, 1},
    {emqx_release, version, 0},
    {emqx_gateway_registry, lookup, 1}
]).

%% As the page saved it, empty where there is none. 5.8 says `{ok, Map}', newer ones `Map'.
-spec stored_config() -> map().
stored_config() ->
    case call(emqx_plugins, get_config, [name_vsn()]) of
        {ok, {ok, Stored}} when is_map(Stored) -> Stored;
        {ok, Stored} when is_map(Stored) -> Stored;
        _ -> #{}
    end.

name_vsn() ->
    case application:get_key(nats_gateway, vsn) of
        {ok, Vsn} -> iolist_to_binary([<<"nats_gateway-">>, Vsn]);
        undefined -> <<"nats_gateway">>
    end.

-spec facts() -> nats_gateway_plugin_config:facts().
facts() ->
    #{
        otp => list_to_integer(erlang:system_info(otp_release)),
        emqx => emqx_version(),
        gateways => gateways(),
        nats => nats(),
        nif => is_nif_loaded(),
        settings => settings()
    }.

settings() ->
    case nats_gateway_plugin_config:parse(stored_config()) of
        {ok, _} -> ok;
        {error, Text} -> {error, Text}
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
