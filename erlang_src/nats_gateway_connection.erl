%% One client: owns its socket, the bytes not yet decoded, the timers, and one send per turn.
%% It knows no rule of the protocol; those are the channel's. It runs under `nats_gateway_guard',
%% because what it handles may be credentials.
-module(nats_gateway_connection).

-behaviour(gen_server).

-export([start_link/2]).
-export([start_link/3]).
-export([hand_over/2]).
-export([drain/1]).
-export([drain/2]).
-export([configure/1]).
-export([info/1]).
-export([call/2]).
-export([call/3]).
-export([cast/2]).
-export([init/1, handle_continue/2, handle_call/3, handle_cast/2, handle_info/2]).
-export([terminate/2, format_status/1]).

-include_lib("kernel/include/logger.hrl").

-type options() :: #{
    host := module(),
    config := nats_gateway_config:config(),
    listener := atom() | binary(),
    refuse => nats_gateway_channel:stop_reason(),
    %% where the options are kept, shared by all connections of a listener
    key => term()
}.

-record(state, {
    socket :: undefined | nats_gateway_transport:socket(),
    options :: options(),
    channel :: undefined | nats_gateway_channel:channel(),
    peername :: undefined | {inet:ip_address(), inet:port_number()},
    %% chunks not yet decoded, newest first, joined once when `need' bytes are there
    chunks = [] :: [binary()],
    buffered = 0 :: non_neg_integer(),
    need = 1 :: non_neg_integer() | infinity,
    %% the socket has used up its chunks and waits for the host to be ready
    passive = false :: boolean(),
    %% the client's FIN has come; what it sent before is still answered
    closed = false :: boolean(),
    %% anything from the client since the last look of a timer
    heard = false :: boolean(),
    %% the host wants to know the statistics from time to time
    reports = false :: boolean(),
    %% of the login, as the timer for it was started
    deadline = infinity :: infinity | integer(),
    timers = #{} :: #{timer() => reference()}
}).

-type timer() :: heartbeat | heartbeat_wait | authentication | idle | login | report | drained.

-define(MAX_TIMER_MS, 16#FFFFFFFF).

%% Statistics of a connection with traffic are reported this often.
-define(REPORT_MS, 5000).

-spec start_link(nats_gateway_transport:socket(), options()) -> {ok, pid()}.
start_link(Socket, Options) ->
    nats_gateway_guard:start_link(?MODULE, {Socket, Options}).

%% As EMQX's acceptors start a connection. The options are found under a key, so that they are in
%% no heap, however many connections there are.
-spec start_link(module(), gen_tcp:socket(), Key :: term()) -> {ok, pid()} | {error, term()}.
start_link(esockd_transport, Port, Key) ->
    nats_gateway_guard:start_link(?MODULE, {esockd, Port, Key}).

%% The acceptor's last act: only the owner of the socket can give it away.
-spec hand_over(nats_gateway_transport:socket(), pid()) -> ok.
hand_over(Socket, Pid) ->
    case nats_gateway_transport:controlling_process(Socket, Pid) of
        ok -> gen_server:cast(Pid, socket_ready);
        {error, Reason} -> gen_server:cast(Pid, {socket_lost, Reason})
    end.

%% Tell the client to go elsewhere (lame duck), and end.
-spec drain(pid()) -> ok.
drain(Pid) -> drain(Pid, 0).

%% The same, leaving the client some time to go by itself.
-spec drain(pid(), Milliseconds :: non_neg_integer()) -> ok.
drain(Pid, Milliseconds) -> gen_server:cast(Pid, {drain, Milliseconds}).

%% The options under the key have changed.
-spec configure(pid()) -> ok.
configure(Pid) -> gen_server:cast(Pid, configure).

-spec info(pid()) -> map().
info(Pid) -> gen_server:call(Pid, info).

%% What others ask of the host of this client.
-spec call(pid(), Request :: term()) -> term().
call(Pid, Request) -> call(Pid, Request, infinity).

-spec call(pid(), Request :: term(), timeout()) -> term().
call(Pid, Request, Timeout) -> gen_server:call(Pid, Request, Timeout).

-spec cast(pid(), Message :: term()) -> ok.
cast(Pid, Message) -> gen_server:cast(Pid, {message, Message}).

%% -------------------------------------------------------------------------------------------

init({esockd, Port, Key}) ->
    _ = process_flag(trap_exit, true),
    Options = persistent_term:get(Key),
    {ok, #state{options = Options#{key => Key}}, {continue, {esockd, Port}}};
init({Socket, Options}) ->
    %% The supervisor's shutdown must reach terminate/2, which says goodbye to the host.
    _ = process_flag(trap_exit, true),
    {ok, #state{socket = Socket, options = Options}}.

handle_continue({esockd, Port}, State) ->
    case nats_gateway_transport:from_esockd(Port) of
        {ok, Socket} -> greet(State#state{socket = Socket});
        {error, _} -> {stop, {shutdown, not_upgraded}, State}
    end.

handle_call(info, _, State = #state{channel = Channel}) ->
    {reply, nats_gateway_channel:info(Channel), State};
handle_call(Request, From, State = #state{channel = Channel}) ->
    {Reply, Result} = nats_gateway_channel:handle_call(Request, Channel),
    case result(Result, State) of
        {noreply, NState} ->
            {reply, Reply, NState};
        {stop, Reason, NState} ->
            %% Who asked need not wait for the client to close its side.
            Left = leave(Reason, NState),
            ok = gen_server:reply(From, Reply),
            {stop, Reason, Left}
    end.

handle_cast(socket_ready, State) ->
    greet(State);
handle_cast({socket_lost, Reason}, State) ->
    {stop, {shutdown, Reason}, State};
handle_cast({drain, Ms}, State = #state{channel = Channel}) when Channel =/= undefined ->
    _ = send_lame_duck(State),
    case Ms of
        0 -> close(drained, State);
        _ -> {noreply, start_timer(drained, Ms, State)}
    end;
handle_cast(configure, State = #state{channel = Channel, options = #{key := Key}}) when
    Channel =/= undefined
->
    Options = #{config := Config} = persistent_term:get(Key, State#state.options),
    result(
        nats_gateway_channel:configure(Config, Channel), State#state{options = Options#{key => Key}}
    );
handle_cast({message, Message}, State) ->
    handle_info(Message, State);
handle_cast(_, State) ->
    {noreply, State}.

greet(State = #state{socket = Socket, options = Options}) ->
    case {nats_gateway_transport:peername(Socket), nats_gateway_transport:sockname(Socket)} of
        {{ok, Peername}, {ok, Sockname}} ->
            #{host := Host, config := Config, listener := Listener} = Options,
            Client = #{
                connect => #{},
                client_id => client_id(),
                transport => maps:get(transport, Options, tcp),
                listener => Listener,
                peername => Peername,
                sockname => Sockname,
                config => Config
            },
            greet(Client, State#state{
                peername = Peername,
                reports = maps:get(enable_stats, Config) andalso nats_gateway_channel:reports(Host)
            });
        _ ->
            %% Gone before it was looked at, as a port scanner does.
            {stop, {shutdown, client_closed}, State}
    end.

greet(Client, State = #state{options = #{refuse := Reason, host := Host}}) ->
    {Out, Channel} = nats_gateway_channel:init(Host, Client),
    Refused = nats_gateway_channel:refuse(Reason, Channel),
    result(prepend(Out, Refused), State#state{channel = Channel});
greet(Client, State = #state{options = #{host := Host, config := Config}}) ->
    case nats_gateway_channel:prepare(Host, Client) of
        {ok, Prepared} ->
            {Out, Channel} = nats_gateway_channel:init(Host, Prepared),
            started(result({ok, Out, Channel}, State#state{channel = Channel}), Config);
        {error, Reason} ->
            %% Without INFO: nats.js would wait for 20 s after it.
            {stop, {shutdown, Reason}, State}
    end.

prepend(Out, {stop, Reason, More, Channel}) -> {stop, Reason, [Out | More], Channel}.

started({noreply, State = #state{socket = Socket}}, Config) ->
    #{default_heartbeat_interval := Heartbeat, idle_timeout := Idle} = Config,
    case nats_gateway_transport:activate(Socket) of
        ok ->
            Started = start_timer(heartbeat, Heartbeat, start_timer(idle, Idle, State)),
            case Config of
                #{auth_required := true, authentication_timeout := Timeout} ->
                    {noreply, start_timer(authentication, Timeout, Started)};
                #{} ->
                    {noreply, Started}
            end;
        {error, Reason} ->
            {stop, {shutdown, Reason}, State}
    end;
started(Stop, _) ->
    Stop.

%% Fits every client: jnats reads it as an int.
client_id() -> erlang:unique_integer([positive, monotonic]) band 16#7FFFFFFF.

handle_info({timeout, Timer, Name}, State = #state{timers = Timers}) when is_atom(Name) ->
    case Timers of
        #{Name := Timer} -> timeout(Name, State#state{timers = maps:remove(Name, Timers)});
        #{} -> {noreply, State}
    end;
handle_info({'EXIT', Port, _}, State) when is_port(Port) ->
    %% A closed socket says so in its own words as well.
    {noreply, State};
handle_info({'EXIT', _, Reason}, State) ->
    {stop, Reason, State};
handle_info(Message, State = #state{socket = Socket, channel = Channel}) ->
    case nats_gateway_transport:classify(Message, Socket) of
        {data, Data} ->
            #state{chunks = Chunks, buffered = Buffered} = State,
            decode(
                report_later(State#state{
                    chunks = [Data | Chunks], buffered = Buffered + byte_size(Data), heard = true
                })
            );
        passive ->
            reactivate(State#state{passive = true});
        closed ->
            decode(State#state{closed = true});
        {error, Reason} ->
            {stop, {shutdown, send_error(Reason)}, State};
        other ->
            WasBusy = nats_gateway_channel:busy(Channel),
            Handled = nats_gateway_channel:handle_info(Message, Channel),
            case result(Handled, report_later(State)) of
                {noreply, NState = #state{}} when WasBusy -> decode(NState);
                Result -> Result
            end
    end.

%% Decode what is there, unless more is needed or the host is being waited for.
decode(State = #state{buffered = Buffered, need = Need, channel = Channel}) ->
    case nats_gateway_channel:busy(Channel) of
        true -> {noreply, State};
        false when Buffered < Need; Buffered =:= 0 -> reactivate(State);
        false -> decode(join(State#state.chunks), [], State)
    end.

join([Chunk]) -> Chunk;
join(Chunks) -> iolist_to_binary(lists:reverse(Chunks)).

decode(Bytes, Out, State = #state{channel = Channel}) ->
    case nats_gateway_nif:decode(Bytes, nats_gateway_channel:settings(Channel)) of
        {ok, Ops, Rest, Need} ->
            case nats_gateway_channel:handle_ops(Ops, Channel) of
                {ok, More, NChannel} ->
                    Left = byte_size(Rest),
                    case nats_gateway_channel:busy(NChannel) of
                        false when Need =:= 0, Left > 0 ->
                            decode(Rest, [Out | More], State#state{channel = NChannel});
                        _ ->
                            NState = State#state{
                                chunks = [Rest || Left > 0], buffered = Left, need = Need
                            },
                            continue(result({ok, [Out | More], NChannel}, NState))
                    end;
                {stop, Reason, More, NChannel} ->
                    result({stop, Reason, [Out | More], NChannel}, State)
            end;
        {error, Reason, Ops} ->
            Handled = nats_gateway_channel:handle_ops(Ops ++ [{error, Reason}], Channel),
            NState = State#state{chunks = [], buffered = 0, need = infinity},
            case Handled of
                {ok, More, NChannel} -> result({ok, [Out | More], NChannel}, NState);
                {stop, R, More, NChannel} -> result({stop, R, [Out | More], NChannel}, NState)
            end
    end.

continue({noreply, State}) -> reactivate(State);
continue(Stop) -> Stop.

reactivate(State = #state{closed = true, channel = Channel}) ->
    case nats_gateway_channel:busy(Channel) of
        true -> {noreply, State};
        false -> result(nats_gateway_channel:handle_ops([eof], Channel), State)
    end;
reactivate(State = #state{passive = false}) ->
    {noreply, State};
reactivate(State = #state{socket = Socket, channel = Channel}) ->
    case nats_gateway_channel:busy(Channel) of
        true ->
            {noreply, State};
        false ->
            case nats_gateway_transport:activate(Socket) of
                ok -> {noreply, State#state{passive = false}};
                {error, Reason} -> {stop, {shutdown, Reason}, State}
            end
    end.

%% The one send of this turn.
result({ok, Out, Channel}, State) ->
    case send(Out, State) of
        ok -> {noreply, login_timer(State#state{channel = Channel})};
        {error, Reason} -> {stop, {shutdown, send_error(Reason)}, State#state{channel = Channel}}
    end;
result({stop, Reason, Out, Channel}, State) ->
    _ = send(Out, State),
    close(Reason, State#state{channel = Channel}).

send(Out, #state{socket = Socket}) ->
    case is_empty(Out) of
        true -> ok;
        false -> nats_gateway_transport:send(Socket, Out)
    end.

is_empty([]) -> true;
is_empty([Head | Tail]) -> is_empty(Head) andalso is_empty(Tail);
is_empty(Binary) -> Binary =:= <<>>.

%% A client that does not read (nats-server's write deadline), or that is not there any more.
send_error(timeout) -> slow_consumer;
send_error(Reason) when Reason =:= closed; Reason =:= epipe; Reason =:= econnreset -> client_closed;
send_error(Reason) -> Reason.

%% EMQX counts the reasons that are atoms, others it takes for crashes.
close({error, Reason}, State) when is_atom(Reason) -> {stop, {shutdown, Reason}, State};
close({denied, _}, State) -> {stop, {shutdown, permission_denied}, State};
close(Reason, State) -> {stop, {shutdown, Reason}, State}.

%% -------------------------------------------------------------------------------------------
%% Timers

timeout(heartbeat, State = #state{heard = true, options = #{config := Config}}) ->
    #{default_heartbeat_interval := Interval} = Config,
    {noreply, start_timer(heartbeat, Interval, State#state{heard = false})};
timeout(heartbeat, State = #state{channel = Channel, options = #{config := Config}}) ->
    #{heartbeat_wait_timeout := Wait} = Config,
    result(
        nats_gateway_channel:handle_timeout(heartbeat, Channel),
        start_timer(heartbeat_wait, Wait, State)
    );
timeout(heartbeat_wait, State = #state{heard = true, options = #{config := Config}}) ->
    #{default_heartbeat_interval := Interval} = Config,
    {noreply, start_timer(heartbeat, Interval, State#state{heard = false})};
timeout(idle, State = #state{channel = Channel}) ->
    case nats_gateway_channel:handle_timeout(idle, Channel) of
        {ok, [], NChannel} -> {noreply, State#state{channel = NChannel}, hibernate};
        Stop -> result(Stop, State)
    end;
timeout(report, State = #state{channel = Channel}) ->
    %% Some seconds after something happened: the memory it took is given back.
    NChannel = nats_gateway_channel:report(octets(State), Channel),
    {noreply, State#state{channel = NChannel}, hibernate};
timeout(drained, State) ->
    %% The listener that closes at this moment would take another reason for a failure.
    {stop, normal, leave({shutdown, drained}, State)};
timeout(login, State = #state{channel = Channel, deadline = Deadline}) ->
    case erlang:monotonic_time(millisecond) of
        Now when Now < Deadline -> {noreply, start_login_timer(State)};
        _ -> result(nats_gateway_channel:handle_timeout(login, Channel), State)
    end;
timeout(Name, State = #state{channel = Channel}) ->
    result(nats_gateway_channel:handle_timeout(Name, Channel), State).

login_timer(State = #state{channel = Channel, deadline = Deadline}) ->
    case nats_gateway_channel:deadline(Channel) of
        Deadline -> State;
        New -> start_login_timer(State#state{deadline = New})
    end.

%% Some logins last longer than a timer can wait. That of an earlier login finds none of its own.
start_login_timer(State = #state{deadline = infinity, timers = Timers}) ->
    State#state{timers = maps:remove(login, Timers)};
start_login_timer(State = #state{deadline = Deadline}) ->
    Left = max(0, Deadline - erlang:monotonic_time(millisecond)),
    start_timer(login, min(Left, ?MAX_TIMER_MS), State).

report_later(State = #state{reports = true, timers = Timers}) when
    not is_map_key(report, Timers)
->
    start_timer(report, ?REPORT_MS, State);
report_later(State) ->
    State.

start_timer(_, infinity, State) ->
    State;
start_timer(Name, Ms, State = #state{timers = Timers}) ->
    State#state{timers = Timers#{Name => erlang:start_timer(Ms, self(), Name)}}.

%% -------------------------------------------------------------------------------------------

terminate(_, #state{socket = undefined}) ->
    ok;
terminate(Reason, State = #state{socket = Socket}) ->
    %% The listener closes.
    _ = Reason =:= shutdown andalso send_lame_duck(State),
    _ = leave(Reason, State),
    case Reason of
        {shutdown, client_closed} -> nats_gateway_transport:close(Socket);
        _ -> nats_gateway_transport:linger_close(Socket)
    end.

send_lame_duck(#state{channel = undefined}) -> ok;
send_lame_duck(State = #state{channel = Channel}) ->
    send(nats_gateway_channel:lame_duck(Channel), State).

%% The host is told before the socket is closed, which may take a while.
leave(_, State = #state{channel = undefined}) ->
    State;
leave(Reason, State = #state{channel = Channel, reports = Reports}) ->
    log_end(Reason, State),
    Last =
        case Reports of
            true -> nats_gateway_channel:report(octets(State), Channel);
            false -> Channel
        end,
    ok = nats_gateway_channel:terminate(Reason, Last),
    State#state{channel = undefined}.

%% The one place that words why a connection ended.
log_end(Reason, State = #state{peername = Peername, options = #{listener := Listener}}) ->
    Report = #{
        msg => connection_closed, peername => address(Peername), listener => Listener
    },
    case Reason of
        {shutdown, client_closed} ->
            ?LOG_INFO(maps:merge(Report#{reason => client_closed}, stats(State)));
        {shutdown, Why} ->
            ?LOG_NOTICE(maps:merge(Report#{reason => Why}, stats(State)));
        _ ->
            ok
    end.

address({Host, Port}) -> iolist_to_binary([inet:ntoa(Host), $:, integer_to_list(Port)]);
address(undefined) -> undefined.

stats(State = #state{channel = Channel, options = #{config := #{enable_stats := true}}}) when
    Channel =/= undefined
->
    maps:merge(octets(State), nats_gateway_channel:stats(Channel));
stats(_) ->
    #{}.

octets(#state{socket = Socket}) ->
    case nats_gateway_transport:getstat(Socket) of
        {ok, Stat} -> Stat;
        {error, _} -> #{}
    end.

%% Bytes of the client may hold credentials: neither they nor the last message are shown.
format_status(Status = #{state := State}) ->
    #state{channel = Channel, timers = Timers} = State,
    maps:remove(message, Status#{
        state := #{
            peername => State#state.peername,
            buffered => State#state.buffered,
            need => State#state.need,
            timers => maps:keys(Timers),
            channel => Channel =/= undefined andalso nats_gateway_channel:info(Channel)
        }
    });
format_status(Status) ->
    maps:remove(message, Status).
