%% Loads the native library when it is needed, and unloads it afterwards.
%%
%% A plugin loader may load the module again at any time. A library can be loaded again only after
%% both generations of its module are gone. So the library is loaded when the application starts,
%% not with the module, and a stopped plugin has no library. Others may need it for a moment,
%% perhaps while the application starts or stops. All of them take turns.
-module(nats_gateway_nif_loader).

-export([acquire/0]).
-export([release/0]).
-export([is_acquired/0]).
-export([with/1]).

-define(ACQUIRED, ?MODULE).

%% Loads the library for the application. Without it the functions raise `not_loaded'.
-spec acquire() -> ok | {error, Text :: binary()}.
acquire() ->
    in_turn(fun() ->
        case load() of
            ok ->
                persistent_term:put(?ACQUIRED, true);
            {error, Text} ->
                {error, Text}
        end
    end).

%% Unloads the library. No process may run in its module any more.
-spec release() -> ok.
release() ->
    in_turn(fun() ->
        _ = persistent_term:erase(?ACQUIRED),
        unload()
    end).

-spec is_acquired() -> boolean().
is_acquired() -> persistent_term:get(?ACQUIRED, false).

%% Calls the function with the library loaded, whether or not the application is started.
-spec with(fun(() -> Result)) -> Result when Result :: term().
with(Fun) ->
    in_turn(fun() ->
        _ = load(),
        try
            Fun()
        after
            is_acquired() orelse unload()
        end
    end).

in_turn(Fun) -> global:trans({?MODULE, self()}, Fun, [node()]).

%% A release loads all modules at boot, so a module that was purged is not loaded on demand.
load() ->
    _ =
        case code:is_loaded(nats_gateway_nif) of
            false -> {module, _} = code:load_file(nats_gateway_nif);
            _ -> ok
        end,
    _ = is_acquired() orelse code:purge(nats_gateway_nif),
    nats_gateway_nif:load().

unload() ->
    _ = code:purge(nats_gateway_nif),
    _ = code:delete(nats_gateway_nif),
    _ = code:purge(nats_gateway_nif),
    ok.
