%% Loads the native library where it is needed, and unloads it afterwards.
%%
%% A plugin loader may load the module again at any time, and a library can be loaded again only
%% after both generations of its module are gone. So the library is loaded when the application
%% starts, not with the module, and a stopped plugin has none. Who needs it only for a moment may
%% come while the application starts or stops: they take turns.
-module(nats_gateway_nif_loader).

-export([acquire/0]).
-export([release/0]).
-export([is_acquired/0]).
-export([with/1]).

-define(ACQUIRED, ?MODULE).

%% For the application. Where there is no library, its functions raise `not_loaded'.
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

%% Nobody may run in the module any more.
-spec release() -> ok.
release() ->
    in_turn(fun() ->
        _ = persistent_term:erase(?ACQUIRED),
        unload()
    end).

-spec is_acquired() -> boolean().
is_acquired() -> persistent_term:get(?ACQUIRED, false).

%% With the library, whether the application is started or not.
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

%% Every module of a release is loaded at boot, so one that was purged is not loaded by need.
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
