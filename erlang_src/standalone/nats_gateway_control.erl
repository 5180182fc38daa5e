%% Handles the signals by which an operator controls a running standalone gateway. They are those of
%% nats-server.
%%
%% SIGTERM and SIGUSR2 begin the lame duck mode. Then no new client is accepted. Clients that are
%% connected are told to go elsewhere, and are served for a while, so that their requests are
%% answered. The gateway ends when the last client has gone.
-module(nats_gateway_control).

-behaviour(gen_server).

-export([start/1]).
-export([start_link/1]).
-export([handle_signals/0]).
-export([signal/1]).
-export([reload/0]).
-export([drain/0]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2, format_status/1]).

-include_lib("kernel/include/logger.hrl").

-export_type([start/0, settings/0]).

-type settings() :: #{
    config := nats_gateway_config:config(),
    %% the listeners of this configuration, ready to be started
    listeners := [nats_gateway_listener:listener()]
}.

-type start() :: #{
    settings := settings(),
    %% reads the settings again
    read := fun(() -> {ok, settings()} | {error, Text :: iodata()}),
    %% answers the commands of `nats_gateway ctl'
    run := nats_gateway_ctl_socket:run()
}.

-record(control, {
    settings :: settings(),
    read :: fun(() -> {ok, settings()} | {error, iodata()}),
    run :: nats_gateway_ctl_socket:run(),
    %% the signal that has begun the lame duck mode
    lame_duck = none :: none | sigterm | sigusr2
}).

%% How often to check whether all clients have gone.
-define(LOOK_MS, 50).

%% Starts the process, below the supervisor of the application.
-spec start(start()) -> ok.
start(Start) ->
    %% The settings hold passwords, which supervisors would show.
    ok = persistent_term:put(?MODULE, Start),
    Child = #{id => ?MODULE, start => {?MODULE, start_link, [?MODULE]}},
    {ok, _} = supervisor:start_child(nats_gateway_sup, Child),
    ok.

-spec start_link(Key :: term()) -> gen_server:start_ret().
start_link(Key) -> nats_gateway_guard:start_link({local, ?MODULE}, ?MODULE, Key).

%% Replaces OTP's own handling. There SIGUSR1 writes a crash dump, and SIGHUP ends the runtime at
%% once.
-spec handle_signals() -> ok.
handle_signals() ->
    Signals = [sighup, sigusr1, sigusr2, sigquit, sigterm],
    Handled = lists:member(nats_gateway_signals, gen_event:which_handlers(erl_signal_server)),
    Handled orelse begin_handling(),
    lists:foreach(fun(Signal) -> ok = os:set_signal(Signal, handle) end, Signals).

begin_handling() ->
    ok = gen_event:swap_handler(
        erl_signal_server, {erl_signal_handler, []}, {nats_gateway_signals, []}
    ).

-spec signal(sighup | sigusr1 | sigusr2 | sigterm) -> ok.
signal(Signal) -> gen_server:cast(?MODULE, {signal, Signal}).

%% The same as SIGHUP, with its result. An error has changed nothing.
-spec reload() -> {ok, nats_gateway_reload:report()} | {error, Text :: iodata()}.
reload() -> gen_server:call(?MODULE, reload, infinity).

%% The same as SIGUSR2.
-spec drain() -> {begun, Milliseconds :: non_neg_integer()} | already.
drain() -> gen_server:call(?MODULE, drain, infinity).

init(Key) ->
    #{settings := Settings, read := Read, run := Run} = persistent_term:get(Key),
    ok = handle_signals(),
    {ok, publish_facts(#control{settings = Settings, read = Read, run = Run})}.

%% Those who watch the gateway see how it is from now on.
publish_facts(State = #control{settings = Settings, lame_duck = LameDuck}) ->
    ok = nats_gateway_standalone_monitor:update(Settings#{is_lame_duck => LameDuck =/= none}),
    State.

handle_call(reload, _, State) ->
    {Outcome, NState} = reload(State),
    {reply, Outcome, NState};
handle_call(drain, From, State = #control{lame_duck = none}) ->
    {Grace, Duration} = sigusr2_times(State),
    ok = gen_server:reply(From, {begun, Duration}),
    lame_duck(sigusr2, Grace, Duration, State);
handle_call(drain, _, State) ->
    {reply, already, State};
handle_call(_, _, State) ->
    {reply, ignored, State}.

handle_cast({signal, sighup}, State) ->
    {_, NState} = reload(State),
    {noreply, NState};
handle_cast({signal, sigusr1}, State) ->
    ok = nats_gateway_log:opened_again(),
    {noreply, State};
handle_cast({signal, sigterm}, State = #control{lame_duck = none, settings = #{config := Config}}) ->
    #{lame_duck_grace_period := Grace} = Config,
    lame_duck(sigterm, Grace, Grace, State);
handle_cast({signal, sigterm}, State = #control{lame_duck = sigterm}) ->
    stop(State);
%% The same as in nats-server: if a service manager sends both signals, the second does not cut the
%% first one short.
handle_cast({signal, sigterm}, State = #control{lame_duck = sigusr2}) ->
    ?LOG_NOTICE(#{msg => lame_duck_goes_on, signal => sigterm}),
    {noreply, State};
handle_cast({signal, sigusr2}, State = #control{lame_duck = none}) ->
    {Grace, Duration} = sigusr2_times(State),
    lame_duck(sigusr2, Grace, Duration, State);
handle_cast({signal, sigusr2}, State) ->
    {noreply, State}.

handle_info(look, State) ->
    case nats_gateway_listener:connections() of
        [] -> stop(State);
        _ -> look_later(State)
    end.

terminate(_, _) -> ok.

%% The settings hold passwords.
format_status(Status = #{state := #control{lame_duck = LameDuck}}) ->
    Status#{state := #{lame_duck => LameDuck}}.

%% -------------------------------------------------------------------------------------------
%% Lame duck

sigusr2_times(#control{settings = #{config := Config}}) ->
    #{lame_duck_grace_period := Grace, lame_duck_duration := Duration} = Config,
    {Grace, max(Grace, Duration)}.

%% After the grace period, clients are closed one by one, so that they do not all reconnect to
%% another server at once.
lame_duck(Signal, Grace, Duration, State) ->
    Listeners = [Pid || {_, Pid} <- nats_gateway_listener:all()],
    lists:foreach(fun nats_gateway_listener:stop_accepting/1, Listeners),
    Connections = nats_gateway_listener:connections(),
    ?LOG_NOTICE(#{msg => lame_duck, connections => length(Connections), milliseconds => Duration}),
    ok = nats_gateway_service_manager:stopping(Duration),
    drain(Connections, Grace, Duration),
    handle_info(look, publish_facts(State#control{lame_duck = Signal})).

drain(Connections, Grace, Duration) ->
    Count = max(1, length(Connections)),
    lists:foreach(
        fun({N, Pid}) ->
            nats_gateway_connection:drain(Pid, Grace + N * (Duration - Grace) div Count)
        end,
        lists:zip(lists:seq(1, length(Connections)), Connections)
    ).

look_later(State) ->
    _ = erlang:send_after(?LOOK_MS, self(), look),
    {noreply, State}.

stop(State) ->
    ok = init:stop(),
    {noreply, State}.

%% -------------------------------------------------------------------------------------------
%% Reload

%% In lame duck mode no listener may be opened again.
reload(State = #control{lame_duck = Signal}) when Signal =/= none ->
    not_reloaded(<<"the gateway is in lame duck mode">>, State);
reload(State = #control{read = Read}) ->
    case Read() of
        {ok, Settings} -> reload(Settings, State);
        {error, Text} -> not_reloaded(unicode:characters_to_binary(Text), State)
    end.

not_reloaded(Text, State) ->
    ?LOG_ERROR(#{msg => reload_failed, reason => Text}),
    {{error, Text}, State}.

%% The identity of the server stays the same; otherwise clients would take it for another server.
reload(#{config := New, listeners := NewListeners}, State) ->
    #control{settings = #{config := Old, listeners := OldListeners}, run = Run} = State,
    Same = maps:with([server_id, secret], Old),
    Listeners = [same_server(Listener, Same) || Listener <- NewListeners],
    {Config, NotMoved} = change_outlets(Old, maps:merge(New, Same), Run),
    Before = by_name(OldListeners),
    Gone = maps:keys(Before) -- [Name || #{name := Name} <- Listeners],
    lists:foreach(fun nats_gateway_listener:stop/1, Gone),
    Changes = [{Listener, change(Listener, Before)} || Listener <- Listeners],
    Kept = [Listener || {Listener = #{name := Name}, Done} <- Changes, Done =:= ok orelse is_open(Name)],
    ?LOG_NOTICE(#{msg => settings_reloaded, listeners => [Name || #{name := Name} <- Kept]}),
    NState = publish_facts(State#control{settings = #{config => Config, listeners => Kept}}),
    ok = nats_gateway_standalone_monitor:answer_requests(Config),
    {Watched, NotWatched} = change_monitor(Old, Config),
    Report = #{
        changed => nats_gateway_reload:changed(Old, Watched),
        listeners_opened => [Name || {#{name := Name}, ok} <- Changes, not is_map_key(Name, Before)],
        listeners_closed => Gone,
        listeners_changed => [
            Name
         || {Listener = #{name := Name}, ok} <- Changes,
            #{Name := Earlier} <- [Before],
            own_settings(Earlier) =/= own_settings(Listener)
        ],
        certificates => nats_gateway_reload:certificates([
            Listener
         || {Listener = #{name := Name}, ok} <- Changes, is_map_key(Name, Before)
        ]),
        problems =>
            NotMoved ++
            [nats_gateway_reload:problem({listener, Listener}, Why) || {Listener, {error, Why}} <- Changes] ++
            NotWatched
    },
    {{ok, Report}, NState#control{settings = #{config => Watched, listeners => Kept}}}.

by_name(Listeners) -> maps:from_list([{Name, Listener} || Listener = #{name := Name} <- Listeners]).

%% Not those that it has from the rest of the file.
own_settings(Listener) -> maps:remove(connection, Listener).

%% The log and the control socket: what cannot be opened stays as it was.
change_outlets(Old, New, Run) ->
    {Logged, NotLogged} =
        case nats_gateway_log:change(Old, New) of
            ok ->
                {New, []};
            {error, Text} ->
                ?LOG_ERROR(#{msg => log_not_changed, reason => unicode:characters_to_binary(Text)}),
                {maps:merge(New, maps:with([log_file, log_format, log_level], Old)), [
                    nats_gateway_reload:problem(log, Text)
                ]}
        end,
    #{control := OldControl} = Old,
    #{control := NewControl} = New,
    ok = nats_gateway_standalone_monitor:count_clients(New),
    case nats_gateway_ctl_socket:change(OldControl, NewControl, Run) of
        ok ->
            {Logged, NotLogged};
        {error, Reason} ->
            ?LOG_ERROR(#{msg => control_not_changed, reason => Reason}),
            Problem = nats_gateway_reload:problem({control, NewControl}, Reason),
            {Logged#{control := OldControl}, NotLogged ++ [Problem]}
    end.

change_monitor(#{monitor := Old}, Config = #{monitor := New}) ->
    case nats_gateway_standalone_monitor:change(Old, New) of
        ok ->
            {Config, []};
        {error, Reason} ->
            ?LOG_ERROR(#{msg => monitor_not_changed, reason => Reason}),
            {Config#{monitor := Old}, [nats_gateway_reload:problem({monitor, New}, Reason)]}
    end.

same_server(Listener = #{connection := Connection = #{config := Config}}, Same) ->
    Listener#{connection := Connection#{config := maps:merge(Config, Same)}}.

is_open(Name) -> proplists:is_defined(Name, nats_gateway_listener:all()).

change(Listener = #{name := Name}, Before) ->
    Done =
        case Before of
            #{Name := Old} ->
                change(Old, Listener, proplists:get_value(Name, nats_gateway_listener:all()));
            #{} ->
                nats_gateway_listener:start(Listener)
        end,
    case Done of
        ok -> ok;
        {error, Reason} -> ?LOG_ERROR(#{msg => listener_not_changed, listener => Name, reason => Reason})
    end,
    Done.

change(Old, New = #{name := Name}, Pid) ->
    case is_pid(Pid) andalso socket(Old) =:= socket(New) of
        true ->
            nats_gateway_listener:reconfigure(Pid, New);
        false ->
            ok = nats_gateway_listener:stop(Name),
            nats_gateway_listener:start(New)
    end.

%% The settings that a listening socket cannot change.
socket(Listener) -> maps:with([type, bind, acceptors, backlog], Listener).
