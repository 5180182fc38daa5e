%% Holds the name `nats' in EMQX's gateway application, as long as this process lives.
%%
%% EMQX has a built-in gateway under that name. If this process starts before EMQX's gateway
%% application, it puts our module in the built-in's place, and EMQX registers and loads our module
%% by itself. Otherwise this process unloads and unregisters the built-in, and then registers our
%% module and loads it with the same settings. `nats_gateway_emqx_quirks' says why the order matters.
-module(nats_gateway_emqx_takeover).

-behaviour(gen_server).

-export([child_spec/0]).
-export([start_link/0]).
-export([settings_changed/0]).
-export([gateway_changed/0]).
-export([settings_stored/1]).
-export([init/1, handle_continue/2, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-include_lib("kernel/include/logger.hrl").

-record(state, {
    %% monitor of EMQX's registry: when the registry ends, our registration is lost
    registry :: undefined | reference(),
    %% timer that runs until the settings of the gateway have not changed for a while
    changed :: undefined | reference(),
    %% the process that changes EMQX's settings, and the settings of the page for the next one
    changer :: undefined | pid(),
    next :: undefined | saved | found
}).

%% EMQX does not ask a stopped plugin for its health, so an alarm reports it.
-define(ALARM, nats_is_not_served).

%% EMQX's gateway application starts within seconds of ours, or much later, or never.
-define(POLL_MS, 300).
%% Time to the next attempt after EMQX's settings could not be changed.
-define(BAR_RETRY_MS, 10000).
%% An operator who replaces the gateway's authenticator removes one and then adds the other.
-define(REST_MS, 60000).
%% EMQX changes its settings in the process emqx_cluster_rpc, which also stops a plugin, and gives the
%% stop 10 s. The drain time of the plugin's page takes up to 8 s of these. A process of ours that
%% waits for a change during a stop would wait for the end of the stop, so it gets only this time.
-define(CHANGER_MS, 500).
%% Unloading drains the clients.
-define(SHUTDOWN_MS, 30000).

-spec child_spec() -> supervisor:child_spec().
child_spec() -> #{id => ?MODULE, start => {?MODULE, start_link, []}, shutdown => ?SHUTDOWN_MS}.

-spec start_link() -> {ok, pid()} | {error, term()}.
start_link() -> gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% The settings of the plugin's own page have changed.
-spec settings_changed() -> ok.
settings_changed() -> gen_server:cast(?MODULE, settings_changed).

%% EMQX's settings of the gateway have changed.
-spec gateway_changed() -> ok.
gateway_changed() -> gen_server:cast(?MODULE, gateway_changed).

%% The settings that the page stored while this process does not run. Either somebody has saved
%% them, or they were just found.
-spec settings_stored(saved | found) -> ok.
settings_stored(saved) ->
    persistent_term:put(?MODULE, saved);
settings_stored(found) ->
    _ = persistent_term:erase(?MODULE),
    ok.

init([]) ->
    _ = process_flag(trap_exit, true),
    ok = nats_gateway_emqx_quirks:set_callback_module(nats_gateway_emqx),
    {ok, #state{}, {continue, take}}.

handle_continue(take, State) -> try_to_take(State).

handle_call(_, _, State) -> {reply, ignored, State}.

handle_cast(settings_changed, State) ->
    handle_info({adapt_bar, saved}, State);
handle_cast(gateway_changed, State = #state{changed = Timer}) ->
    _ = Timer =/= undefined andalso erlang:cancel_timer(Timer),
    {noreply, State#state{changed = erlang:send_after(?REST_MS, self(), {adapt_bar, found})}}.

handle_info(take, State = #state{registry = undefined}) ->
    try_to_take(State);
handle_info({'DOWN', Monitor, process, _, _}, State = #state{registry = Monitor}) ->
    try_to_take(State#state{registry = undefined, changed = undefined});
handle_info({adapt_bar, _}, State = #state{registry = undefined}) ->
    %% EMQX's gateway application does not run, so it has no settings to change.
    {noreply, State};
handle_info({adapt_bar, Settings}, State = #state{changer = undefined}) ->
    {noreply, State#state{changer = spawn_link(fun() -> adapt_bar(Settings) end)}};
handle_info({adapt_bar, Settings}, State = #state{next = Next}) ->
    {noreply, State#state{next = newer(Settings, Next)}};
handle_info({'EXIT', Changer, _}, State = #state{changer = Changer, next = Next}) ->
    _ = Next =/= undefined andalso (self() ! {adapt_bar, Next}),
    {noreply, State#state{changer = undefined, next = undefined}};
handle_info(_, State) ->
    {noreply, State}.

terminate(_, #state{changer = Changer}) ->
    ok = await_changer(Changer),
    ok = nats_gateway_emqx_quirks:set_callback_module(nats_gateway_emqx_compat:built_in()),
    %% Usually our application is being stopped now, so the application controller cannot be asked.
    case whereis(emqx_gateway_registry) of
        undefined -> ok;
        _ -> give_back(nats_gateway_emqx_quirks:is_node_stopping())
    end.

await_changer(undefined) ->
    ok;
await_changer(Changer) ->
    receive
        {'EXIT', Changer, _} -> ok
    after ?CHANGER_MS ->
        true = exit(Changer, kill),
        ok
    end.

%% -------------------------------------------------------------------------------------------

newer(found, saved) -> saved;
newer(Settings, _) -> Settings.

try_to_take(State) ->
    case nats_gateway_emqx_quirks:is_running(emqx_gateway) of
        true ->
            try take_name() of
                Registry ->
                    self() ! {adapt_bar, persistent_term:get(?MODULE, found)},
                    ok = settings_stored(found),
                    {noreply, State#state{registry = monitor(process, Registry)}}
            catch
                Class:Reason:Stack ->
                    Caught = nats_gateway_guard:caught(Class, Reason, Stack),
                    ?LOG_ERROR(Caught#{msg => "gateway_name_not_taken"}),
                    {noreply, try_again_later(State)}
            end;
        false ->
            {noreply, try_again_later(State)}
    end.

try_again_later(State) ->
    _ = erlang:send_after(?POLL_MS, self(), take),
    State.

take_name() ->
    Registry = whereis(emqx_gateway_registry),
    true = is_pid(Registry),
    ok = nats_gateway_emqx_quirks:serve_with(nats_gateway_emqx),
    nats_gateway_emqx_quirks:load(),
    _ = emqx_alarm:ensure_deactivated(?ALARM),
    Registry.

give_back(IsStopping) ->
    try
        ok = nats_gateway_emqx_quirks:serve_with(nats_gateway_emqx_compat:built_in()),
        %% The built-in would open its listeners for a moment, and clients that were just sent away
        %% would come back.
        case IsStopping of
            true -> ok;
            false -> load_built_in(nats_gateway_emqx_built_in:may_serve())
        end
    catch
        Class:Reason:Stack ->
            Caught = nats_gateway_guard:caught(Class, Reason, Stack),
            ?LOG_ERROR(Caught#{msg => "gateway_name_not_given_back"})
    end.

load_built_in(true) ->
    nats_gateway_emqx_quirks:load();
load_built_in({false, Unknown}) ->
    Details = #{
        reason => <<"EMQX's built-in gateway does not ask for what the plugin nats_gateway asks for">>,
        unknown_to_it => Unknown,
        hint => <<"start the plugin, or set built_in_may_serve on its page">>
    },
    ?LOG_WARNING(Details#{msg => "nats_is_not_served"}),
    _ = emqx_alarm:activate(?ALARM, Details, <<"The gateway nats is not served">>),
    ok.

%% EMQX's errors may hold its settings.
adapt_bar(Settings) ->
    try nats_gateway_emqx_built_in:adapt_bar(Settings) of
        ok -> ok;
        {error, _} -> bar_failed(refused, Settings)
    catch
        _:Reason -> bar_failed(nats_gateway_guard:shape(Reason), Settings)
    end.

bar_failed(Reason, Settings) ->
    ?LOG_WARNING(#{msg => "authenticator_of_nats_not_changed", reason => Reason}),
    _ = erlang:send_after(?BAR_RETRY_MS, ?MODULE, {adapt_bar, Settings}),
    ok.
