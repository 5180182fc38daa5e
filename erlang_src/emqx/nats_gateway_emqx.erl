%% The gateway `nats' of an EMQX node: the callbacks of its gateway application, and the listeners.
%%
%% The listeners live in esockd and the clients in their connections; this process, linked to
%% EMQX's gateway instance, lives as long as the listeners do. It opens, changes and closes them,
%% and when EMQX ends the instance without a word it closes them, too.
-module(nats_gateway_emqx).

-behaviour(gen_server).

-export([on_gateway_load/2]).
-export([on_gateway_update/3]).
-export([on_gateway_unload/2]).
-export([check_page/1]).
-export([settings_changed/0]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2, format_status/1]).

-include_lib("kernel/include/logger.hrl").

-ignore_xref([
    {emqx_gateway_cm, tabname, 2},
    {emqx_gateway_cm_registry, unregister_channel, 2},
    {emqx_listeners, esockd_access_rules, 1},
    {emqx_tls_lib, to_server_opts, 2},
    {esockd, close, 1},
    {esockd, open, 4},
    {esockd, reset_options, 2},
    {esockd, listener, 1},
    {esockd_listener_sup, connection_sup, 1}
]).

-record(state, {
    ctx :: map(),
    gateway :: map(),
    listeners = [] :: [nats_gateway_emqx_config:listener()],
    plugin :: nats_gateway_emqx_page:settings(),
    login = nats_gateway_login:none() :: nats_gateway_login:login(),
    %% in the log, of settings that are not honoured
    told = [] :: [{Where :: atom(), nats_gateway_emqx_settings:refusal()}],
    defaults = maps:merge(nats_gateway_config:defaults(), nats_gateway_config:identity()) :: map()
}).

%% EMQX itself gives an instance 15 s for a call.
-define(CALL_MS, 14000).
%% Whoever changes the page waits so long at most. If the gateway is busy, it finds out afterwards.
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
        %% The reason holds the call, and the call the tokens of the settings.
        exit:{timeout, _} -> {error, timeout};
        exit:_ -> {error, not_running}
    end.

-spec on_gateway_unload(#{config := map(), _ => _}, pid()) -> ok.
on_gateway_unload(#{config := Gateway}, Pid) ->
    true = unlink(Pid),
    try
        gen_server:stop(Pid, shutdown, ?CALL_MS)
    catch
        %% It was killed, and the listeners were left.
        exit:noproc ->
            lists:foreach(fun close/1, nats_gateway_emqx_config:listeners(Gateway)),
            sweep()
    end.

%% Whether the settings of the plugin's own page fit those of the gateway, where it runs.
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

terminate(_, #state{listeners = Listeners, plugin = #{drain_time := DrainTime}}) ->
    drain(Listeners, DrainTime),
    lists:foreach(fun close/1, Listeners),
    sweep().

%% The settings hold tokens.
format_status(Status = #{state := #state{listeners = Listeners}}) ->
    Status#{state := #{listeners => lists:map(fun reference/1, Listeners)}}.

%% -------------------------------------------------------------------------------------------
%% Listeners

apply_config(Gateway, State) ->
    Listeners = nats_gateway_emqx_config:listeners(Gateway),
    case nats_gateway_emqx_config:login(Gateway, State#state.plugin) of
        {ok, Login} ->
            NState = State#state{gateway = Gateway, listeners = Listeners, login = Login},
            case problem(Gateway, Listeners, NState) of
                none -> apply_listeners(NState, State);
                Problem -> {error, Problem}
            end;
        {error, Text} ->
            {error, bad_config(internal_authn, hidden, Text)}
    end.

apply_listeners(New = #state{listeners = Listeners}, Old) ->
    #{close := Close, open := Open, keep := Keep} =
        nats_gateway_emqx_config:changes(Old#state.listeners, Listeners),
    %% A port may go from one listener to another. What can be kept until all is well, is.
    {InTheWay, Others} = lists:partition(
        fun(Listener) -> is_in_the_way(Listener, Open) end, Close
    ),
    lists:foreach(fun close/1, InTheWay),
    case open_all(Open, New) of
        ok ->
            lists:foreach(fun close/1, Others),
            reset_all(Keep, Old, New),
            {ok, tell_not_honoured(New)};
        {error, Reason} ->
            _ = open_all(InTheWay, Old),
            {error, Reason}
    end.

%% Once, as long as it is so.
tell_not_honoured(State = #state{gateway = Gateway, listeners = Listeners, told = Told}) ->
    Refusals =
        [{nats, R} || R <- nats_gateway_emqx_settings:not_honoured(nats_gateway_emqx_settings:gateway(), Gateway)] ++
            [
                {nats_gateway_emqx_config:listener_id(Id), R}
             || #{id := Id = {Type, _}, conf := Conf} <- Listeners,
                R <- nats_gateway_emqx_settings:not_honoured(nats_gateway_emqx_settings:listener(Type), Conf)
            ],
    lists:foreach(
        fun({Where, Refusal}) ->
            ?LOG_WARNING(Refusal#{msg => "setting_is_not_honoured", of_what => Where})
        end,
        Refusals -- Told
    ),
    State#state{told = Refusals}.

%% What can be known before anything is changed.
problem(Gateway, Listeners, State = #state{plugin = Plugin, login = Login}) ->
    case nats_gateway_emqx_config:problem(Gateway, Plugin, Login) of
        {Key, Value, Text} -> bad_config(Key, Value, Text);
        none -> tls_problem([Tls || L <- Listeners, Tls <- [tls(L, State)], Tls =/= none])
    end.

tls_problem([]) ->
    none;
tls_problem([Tls = #{listener := Id} | More]) ->
    case nats_gateway_tls:load(Tls) of
        {ok, _} -> tls_problem(More);
        {error, Problem} -> bad_file(Id, Problem)
    end.

%% ranch knows a listener by its name alone.
is_in_the_way(#{id := Id, bind := Bind}, Open) ->
    lists:any(
        fun(#{id := OtherId, bind := Other}) ->
            port(Bind) =:= port(Other) orelse (is_ranch(Id) andalso Id =:= OtherId)
        end,
        Open
    ).

is_ranch({Type, _}) -> Type =:= ws orelse Type =:= wss.

port({_, Port}) -> Port;
port(Port) -> Port.

open_all([], _) ->
    ok;
open_all([Listener | Listeners], State) ->
    case open(Listener, State) of
        ok ->
            case open_all(Listeners, State) of
                ok ->
                    ok;
                {error, Reason} ->
                    close(Listener),
                    {error, Reason}
            end;
        {error, Reason} ->
            {error, Reason}
    end.

open(Listener, State) ->
    case publish_certificates(tls(Listener, State)) of
        ok -> start(Listener, State);
        {error, Reason} -> {error, Reason}
    end.

start(Listener = #{id := Id, bind := Bind}, State) ->
    _ = publish_options(Listener, State),
    Ref = {Name, Bind} = reference(Listener),
    Options = options(Listener),
    Start =
        case is_ranch(Id) of
            true -> fun() -> nats_gateway_emqx_ranch:open(Name, Options, key(Ref)) end;
            false -> fun() -> esockd:open(Name, Bind, Options, mfa(Ref)) end
        end,
    Started =
        case Start() of
            {error, {already_started, _}} ->
                %% Left by one that was killed: its connections know nothing of our settings.
                stop(Listener),
                Start();
            Other ->
                Other
        end,
    case Started of
        {ok, _} ->
            ?LOG_INFO(#{msg => "listener_started", listener => Name, bind => format(Bind)}),
            ok;
        {error, Reason} ->
            ok = unpublish(Ref),
            {error,
                bad_config(
                    listeners,
                    #{listener => nats_gateway_emqx_config:listener_id(Id), bind => format(Bind)},
                    explain(Reason)
                )}
    end.

%% What is the same stays as it is: neither acceptors nor connections notice.
reset_all(Listeners, Old, New) ->
    lists:foreach(
        fun(Listener) ->
            Ref = reference(Listener),
            [Before] = [L || L <- Old#state.listeners, reference(L) =:= Ref],
            case publish_certificates(tls(Listener, New)) of
                ok -> ok;
                {error, Problem} -> ?LOG_ERROR(#{msg => "tls_not_changed", reason => Problem})
            end,
            case {options(Before), options(Listener)} of
                {Same, Same} -> ok;
                {OldOptions, NewOptions} -> reset(Listener, OldOptions, NewOptions, New)
            end,
            case publish_options(Listener, New) of
                unchanged ->
                    ok;
                changed ->
                    lists:foreach(fun nats_gateway_connection:configure/1, connections(Listener))
            end
        end,
        Listeners
    ).

reset(Listener = #{id := Id}, Old, New, State) ->
    Ref = {Name, _} = reference(Listener),
    Reset =
        case is_ranch(Id) of
            true -> nats_gateway_emqx_ranch:change(Name, Old, New);
            false -> esockd:reset_options(Ref, [{connection_mfargs, mfa(Ref)} | New])
        end,
    case Reset of
        ok ->
            ?LOG_INFO(#{msg => "listener_updated", listener => Name});
        {error, Reason} ->
            %% Some options are for a new socket only.
            ?LOG_WARNING(#{msg => "listener_reopened", listener => Name, reason => Reason}),
            stop(Listener),
            case open(Listener, State) of
                ok ->
                    ok;
                {error, Why} ->
                    ?LOG_ERROR(#{msg => "listener_lost", listener => Name, reason => Why})
            end
    end.

close(Listener) ->
    Ref = {Name, Bind} = reference(Listener),
    stop(Listener),
    ok = unpublish(Ref),
    ?LOG_INFO(#{msg => "listener_stopped", listener => Name, bind => format(Bind)}).

stop(Listener = #{id := Id}) ->
    Ref = {Name, _} = reference(Listener),
    _ =
        case is_ranch(Id) of
            true -> nats_gateway_emqx_ranch:stop(Name);
            false -> esockd:close(Ref)
        end,
    ok.

reference(#{id := Id, bind := Bind}) -> {nats_gateway_emqx_config:listener_id(Id), Bind}.

mfa(Ref) -> {nats_gateway_connection, start_link, [key(Ref)]}.

%% Of one binding: a listener that moves has two for a while.
key(Ref) -> {nats_gateway_connection, Ref}.

%% What every connection of the listener looks up when it starts. It stays where it is as long as
%% it is the same: a change makes the runtime look through all processes.
publish_options(Listener, State) ->
    #state{gateway = Gateway, plugin = Plugin, login = Login, defaults = Defaults, ctx = Ctx} =
        State,
    NDefaults = Defaults#{auth_required := nats_gateway_emqx_compat:needs_authenticator()},
    #{config := Config} =
        Options = nats_gateway_emqx_config:options(Gateway, Listener, Plugin, Login, NDefaults),
    Key = key(reference(Listener)),
    Known = Options#{config := Config#{emqx => nats_gateway_emqx_metrics:context(Ctx)}},
    New =
        case tls(Listener, State) of
            none -> Known;
            Tls -> Known#{tls => nats_gateway_tls:plan(Tls)}
        end,
    case persistent_term:get(Key, undefined) of
        New ->
            unchanged;
        _ ->
            ok = persistent_term:put(Key, New),
            changed
    end.

unpublish(Ref) ->
    _ = persistent_term:erase(key(Ref)),
    nats_gateway_tls:forget(key(Ref)).

%% TLS is the connection's, whoever accepts.
tls(Listener = #{id := {Type, _}, conf := Conf}, #state{plugin = Plugin}) when
    Type =:= ssl; Type =:= wss
->
    #{ssl_options := Ssl} = Conf,
    Options = emqx_tls_lib:to_server_opts(tls, Ssl),
    nats_gateway_emqx_config:tls(Listener, key(reference(Listener)), Options, Plugin);
tls(_, _) ->
    none.

publish_certificates(none) ->
    ok;
publish_certificates(Tls = #{listener := Id}) ->
    case nats_gateway_tls:publish(Tls) of
        ok -> ok;
        {error, Problem} -> {error, bad_file(Id, Problem)}
    end.

%% Of esockd or of ranch.
options(Listener = #{id := Id, conf := Conf}) ->
    AccessRules = emqx_listeners:esockd_access_rules(maps:get(access_rules, Conf, [])),
    case is_ranch(Id) of
        true ->
            nats_gateway_emqx_config:ranch_options(Listener, AccessRules);
        false ->
            [
                {access_rules, AccessRules}
                | nats_gateway_emqx_config:esockd_options(Listener)
            ]
    end.

connections(Listener = #{id := Id}) ->
    case is_ranch(Id) of
        true -> nats_gateway_emqx_ranch:connections(nats_gateway_emqx_config:listener_id(Id));
        false -> esockd_connections(Listener)
    end.

esockd_connections(Listener) ->
    case connection_sup(Listener) of
        undefined ->
            [];
        Sup ->
            [Pid || {_, Pid, _, _} <- supervisor:which_children(Sup), is_pid(Pid)]
    end.

connection_sup(Listener) ->
    try
        esockd_listener_sup:connection_sup(esockd:listener(reference(Listener)))
    catch
        error:not_found -> undefined
    end.

%% -------------------------------------------------------------------------------------------
%% The end

%% Nobody is let in any more; who is there is told to go elsewhere, and has some time to do so.
drain(_, 0) ->
    ok;
drain(Listeners, Ms) ->
    Pids = lists:flatmap(
        fun(Listener) ->
            stop_accepting(Listener),
            connections(Listener)
        end,
        Listeners
    ),
    Monitors = [
        begin
            ok = nats_gateway_connection:drain(Pid, max(1, Ms div 2)),
            monitor(process, Pid)
        end
     || Pid <- Pids
    ],
    await(Monitors, erlang:monotonic_time(millisecond) + Ms).

stop_accepting(Listener = #{id := Id}) ->
    case is_ranch(Id) of
        true -> nats_gateway_emqx_ranch:suspend(nats_gateway_emqx_config:listener_id(Id));
        false -> stop_acceptors(Listener)
    end.

stop_acceptors(Listener) ->
    try
        _ = supervisor:terminate_child(esockd:listener(reference(Listener)), acceptor_sup),
        ok
    catch
        error:not_found -> ok
    end.

await([], _) ->
    ok;
await([Monitor | Monitors], Deadline) ->
    receive
        {'DOWN', Monitor, process, _, _} -> await(Monitors, Deadline)
    after max(0, Deadline - erlang:monotonic_time(millisecond)) ->
        true = demonitor(Monitor, [flush]),
        await(Monitors, Deadline)
    end.

%% What a killed connection left behind would be counted for ever.
sweep() ->
    Table = emqx_gateway_cm:tabname(chan, nats),
    case ets:whereis(Table) of
        undefined ->
            ok;
        _ ->
            lists:foreach(
                fun
                    (Channel = {_, Pid}) when node(Pid) =:= node() ->
                        is_process_alive(Pid) orelse
                            emqx_gateway_cm_registry:unregister_channel(nats, Channel);
                    (_) ->
                        ok
                end,
                ets:tab2list(Table)
            )
    end.

%% -------------------------------------------------------------------------------------------
%% Words for the REST API

%% Its own error of this form is shown as a sentence.
bad_config(Key, Value, Text) -> {badconf, #{key => Key, value => Value, reason => Text}}.

bad_file(Id, Problem) ->
    Text = iolist_to_binary(nats_gateway_tls:format_problem(Problem)),
    bad_config(ssl_options, #{listener => Id}, Text).

explain({{shutdown, {failed_to_start_child, ranch_acceptors_sup, {listen_error, _, Reason}}}, _}) ->
    explain(Reason);
explain({shutdown, {failed_to_start_child, listener, Reason}}) ->
    explain(Reason);
explain({{shutdown, {failed_to_start_child, listener, Reason}}, _}) ->
    explain(Reason);
explain(Reason) when is_atom(Reason) ->
    iolist_to_binary(["cannot listen: ", inet:format_error(Reason)]);
explain(Reason) ->
    iolist_to_binary(io_lib:format("cannot listen: ~0p", [Reason])).

format({Address, Port}) when tuple_size(Address) =:= 8 ->
    iolist_to_binary(["[", inet:ntoa(Address), "]:", integer_to_binary(Port)]);
format({Address, Port}) ->
    iolist_to_binary([inet:ntoa(Address), ":", integer_to_binary(Port)]);
format(Port) ->
    integer_to_binary(Port).
