%% The gateway `nats' of an EMQX node: the callbacks of EMQX's gateway application, and a process.
%%
%% The process has the settings and the listeners (`nats_gateway_emqx_listeners'). It is linked to
%% EMQX's gateway instance and lives as long as the listeners do. If EMQX ends the instance without
%% calling us, the process still closes the listeners.
-module(nats_gateway_emqx).

-behaviour(gen_server).

-export([on_gateway_load/2]).
-export([on_gateway_update/3]).
-export([on_gateway_unload/2]).
-export([check_page/1]).
-export([settings_changed/0]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2, format_status/1]).

-include_lib("kernel/include/logger.hrl").

-record(state, {
    ctx :: map(),
    gateway :: map(),
    listeners = [] :: [nats_gateway_emqx_listeners:listener()],
    plugin :: nats_gateway_emqx_page:settings(),
    login = nats_gateway_login:none() :: nats_gateway_login:login(),
    %% where it can be watched now
    monitor :: nats_gateway_monitor:bind(),
    %% milliseconds of the system's time
    started = erlang:system_time(millisecond) :: integer(),
    %% settings that are not honoured, as they were logged
    not_honoured = [] :: [{Where :: atom(), nats_gateway_emqx_settings:refusal()}],
    defaults = maps:merge(nats_gateway_config:defaults(), nats_gateway_config:identity()) :: map()
}).

%% EMQX gives an instance 15 s for a call.
-define(CALL_MS, 14000).
%% A change of the page waits at most so long. A gateway that is busy checks the page afterwards.
-define(CHECK_MS, 3000).

%% -------------------------------------------------------------------------------------------
%% Callbacks of EMQX's gateway instance

-spec on_gateway_load(#{config := map(), _ => _}, Ctx :: map()) ->
    {ok, [pid()], pid()} | {error, term()}.
on_gateway_load(#{config := Gateway}, Ctx) ->
    case nats_gateway_nif_loader:is_acquired() of
        true -> start_gateway(Gateway, Ctx);
        false -> {error, bad_config(nats, hidden, <<"the native library cannot be loaded">>)}
    end.

start_gateway(Gateway, Ctx) ->
    case nats_gateway_guard:start_link({local, ?MODULE}, ?MODULE, {Gateway, Ctx}) of
        {ok, Pid} -> {ok, [Pid], Pid};
        {error, Reason} -> {error, Reason}
    end.

-spec on_gateway_update(NewConfig :: map(), map(), pid()) ->
    {ok, [pid()], pid()} | {error, term()}.
on_gateway_update(Gateway, _, Pid) ->
    try gen_server:call(Pid, {update, Gateway}, ?CALL_MS) of
        ok ->
            ok = nats_gateway_emqx_takeover:gateway_changed(),
            {ok, [Pid], Pid};
        {error, Reason} -> {error, Reason}
    catch
        %% The reason holds the call, and the call holds the tokens of the settings.
        exit:{timeout, _} -> {error, timeout};
        exit:_ -> {error, not_running}
    end.

-spec on_gateway_unload(#{config := map(), _ => _}, pid()) -> ok.
on_gateway_unload(#{config := Gateway}, Pid) ->
    true = unlink(Pid),
    try
        gen_server:stop(Pid, shutdown, ?CALL_MS)
    catch
        %% The process was killed and could not close the listeners.
        exit:noproc ->
            ok = nats_gateway_emqx_listeners:close_left(nats_gateway_emqx_config:listeners(Gateway)),
            nats_gateway_emqx_quirks:forget_dead_clients()
    end.

%% Whether the settings of the plugin's own page fit those of the gateway, if the gateway runs.
-spec check_page(nats_gateway_emqx_page:settings()) -> ok | {error, Text :: binary()}.
check_page(Plugin) ->
    try
        gen_server:call(?MODULE, {check_page, Plugin}, ?CHECK_MS)
    catch
        exit:_ -> ok
    end.

%% The settings of the plugin's own page have changed.
-spec settings_changed() -> ok.
settings_changed() -> gen_server:cast(?MODULE, settings_changed).

%% -------------------------------------------------------------------------------------------

init({Gateway, Ctx}) ->
    %% Listeners must not outlive this process.
    _ = process_flag(trap_exit, true),
    State = #state{
        ctx = Ctx, gateway = Gateway, plugin = nats_gateway_emqx_page:get()
    },
    case apply_config(Gateway, State) of
        {ok, NState} -> {ok, NState};
        {error, Reason} -> {stop, Reason}
    end.

handle_call({update, Gateway}, _, State) ->
    case apply_config(Gateway, State) of
        {ok, NState} -> {reply, ok, NState};
        {error, Reason} -> {reply, {error, Reason}, State}
    end;
handle_call({check_page, Plugin}, _, State = #state{gateway = Gateway}) ->
    {reply, nats_gateway_emqx_config:check_page(Gateway, Plugin), State};
handle_call(_, _, State) ->
    {reply, ignored, State}.

handle_cast(settings_changed, State = #state{gateway = Gateway}) ->
    case apply_config(Gateway, State#state{plugin = nats_gateway_emqx_page:get()}) of
        {ok, NState} ->
            {noreply, NState};
        {error, Reason} ->
            ?LOG_ERROR(#{msg => "settings_not_applied", reason => Reason}),
            {noreply, State}
    end.

handle_info(_, State) ->
    {noreply, State}.

terminate(_, #state{monitor = Monitor, listeners = Listeners, plugin = #{drain_time := DrainTime}}) ->
    ok = nats_gateway_emqx_prometheus:change(false),
    ok = nats_gateway_emqx_monitor:close(Monitor),
    ok = nats_gateway_emqx_listeners:drain(Listeners, DrainTime),
    ok = nats_gateway_emqx_listeners:close(Listeners),
    nats_gateway_emqx_quirks:forget_dead_clients().

%% The settings hold tokens.
format_status(Status = #{state := #state{listeners = Listeners}}) ->
    Status#{state := #{listeners => lists:map(fun nats_gateway_emqx_listeners:id/1, Listeners)}}.

%% -------------------------------------------------------------------------------------------
%% Settings

apply_config(Gateway, State = #state{plugin = Plugin, listeners = Old}) ->
    case nats_gateway_emqx_config:login(Gateway, Plugin) of
        {ok, Login} ->
            New = State#state{gateway = Gateway, login = Login},
            case replace_listeners(Old, New) of
                {ok, Listeners} ->
                    {ok, log_not_honoured(watch(Plugin, New#state{listeners = Listeners}))};
                {error, Problem} -> {error, Problem}
            end;
        {error, Text} ->
            {error, bad_config(internal_authn, hidden, Text)}
    end.

replace_listeners(Old, State = #state{gateway = Gateway, plugin = Plugin, login = Login}) ->
    case nats_gateway_emqx_config:problem(Gateway, Plugin, Login) of
        {Key, Value, Text} -> {error, bad_config(Key, Value, Text)};
        none -> replace_with(listeners(State), Old)
    end.

replace_with(New, Old) ->
    case nats_gateway_emqx_listeners:problem(New) of
        none ->
            case nats_gateway_emqx_listeners:replace(Old, New) of
                ok -> {ok, New};
                {error, Problem} -> {error, bad_listener(Problem)}
            end;
        Problem ->
            {error, bad_listener(Problem)}
    end.

listeners(State = #state{gateway = Gateway, plugin = Plugin}) ->
    [
        nats_gateway_emqx_listeners:new(Listener, connection(Listener, State), Plugin)
     || Listener <- nats_gateway_emqx_config:listeners(Gateway)
    ].

%% The values that each connection of the listener looks up when it starts.
connection(Listener, State) ->
    #state{gateway = Gateway, plugin = Plugin, login = Login, defaults = Defaults, ctx = Ctx} =
        State,
    NDefaults = Defaults#{auth_required := nats_gateway_emqx_compat:needs_authenticator()},
    Context = nats_gateway_emqx_metrics:context(Ctx),
    nats_gateway_emqx_config:options(Gateway, Listener, Plugin, Login, NDefaults, Context).

%% With what is told there from now on.
watch(#{monitor_bind := Bind, emqx_prometheus := InEndpoint, presence := Presence}, State) ->
    ok = nats_gateway_emqx_presence:change(Presence),
    #state{monitor = Old, gateway = Gateway, started = Started} = State,
    Config =
        case nats_gateway_emqx_config:listeners(Gateway) of
            [Listener | _] -> maps:get(config, connection(Listener, State));
            [] -> State#state.defaults
        end,
    Facts = #{config => Config, gateway => Gateway, started => Started},
    NState = State#state{monitor = nats_gateway_emqx_monitor:change(Old, Bind, Facts)},
    ok = nats_gateway_emqx_prometheus:change(InEndpoint),
    NState.

%% A setting is logged once, and again only after it has changed.
log_not_honoured(State = #state{gateway = Gateway, not_honoured = Logged}) ->
    Refusals =
        [{nats, R} || R <- nats_gateway_emqx_settings:not_honoured(nats_gateway_emqx_settings:gateway(), Gateway)] ++
            [
                {nats_gateway_emqx_config:listener_id(Id), R}
             || #{id := Id = {Type, _}, conf := Conf} <- nats_gateway_emqx_config:listeners(Gateway),
                R <- nats_gateway_emqx_settings:not_honoured(nats_gateway_emqx_settings:listener(Type), Conf)
            ],
    lists:foreach(
        fun({Where, Refusal}) ->
            ?LOG_WARNING(Refusal#{msg => "setting_is_not_honoured", of_what => Where})
        end,
        Refusals -- Logged
    ),
    State#state{not_honoured = Refusals}.

%% -------------------------------------------------------------------------------------------
%% Texts for the REST API

%% The REST API shows an error of this form as a sentence.
bad_config(Key, Value, Text) -> {badconf, #{key => Key, value => Value, reason => Text}}.

bad_listener({tls, Name, Problem}) ->
    Text = iolist_to_binary(nats_gateway_tls:format_problem(Problem)),
    bad_config(ssl_options, #{listener => Name}, Text);
bad_listener({listen, Name, Bind, Text}) ->
    bad_config(listeners, #{listener => Name, bind => list_to_binary(Bind)}, Text).
