%% One client: owns its socket, the bytes not yet decoded, the timers, and one send per turn.
%% It knows no rule of the protocol; those are the channel's.
-module(nats_gateway_connection).

-behaviour(gen_server).

-export([start_link/2]).
-export([hand_over/2]).
-export([drain/1]).
-export([info/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2, format_status/1]).

-include_lib("kernel/include/logger.hrl").

-type options() :: #{
    host := module(),
    config := nats_gateway_config:config(),
    listener := binary(),
    refuse => nats_gateway_channel:stop_reason()
}.

-record(state, {
    socket :: nats_gateway_transport:socket(),
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
    timers = #{} :: #{timer() => reference()}
}).

-type timer() :: heartbeat | heartbeat_wait | authentication | idle.

-spec start_link(nats_gateway_transport:socket(), options()) -> {ok, pid()}.
start_link(Socket, Options) ->
    gen_server:start_link(?MODULE, {Socket, Options}, []).

%% The acceptor's last act: only the owner of the socket can give it away.
-spec hand_over(nats_gateway_transport:socket(), pid()) -> ok.
hand_over(Socket, Pid) ->
    case nats_gateway_transport:controlling_process(Socket, Pid) of
        ok -> gen_server:cast(Pid, socket_ready);
        {error, Reason} -> gen_server:cast(Pid, {socket_lost, Reason})
    end.

%% Tell the client to go elsewhere (lame duck), and end.
-spec drain(pid()) -> ok.
drain(Pid) -> gen_server:cast(Pid, drain).

-spec info(pid()) -> map().
info(Pid) -> gen_server:call(Pid, info).

%% -------------------------------------------------------------------------------------------

init({Socket, Options}) ->
    %% The supervisor's shutdown must reach terminate/2, which says goodbye to the host.
    _ = process_flag(trap_exit, true),
    {ok, #state{socket = Socket, options = Options}}.

handle_call(info, _, State = #state{channel = Channel}) ->
    {reply, nats_gateway_channel:info(Channel), State};
handle_call(_, _, State) ->
    {reply, ignored, State}.

handle_cast(socket_ready, State) ->
    greet(State);
handle_cast({socket_lost, Reason}, State) ->
    {stop, {shutdown, Reason}, State};
handle_cast(drain, State = #state{channel = Channel}) when Channel =/= undefined ->
    _ = send(nats_gateway_channel:lame_duck(Channel), State),
    close(drained, State);
handle_cast(_, State) ->
    {noreply, State}.

greet(State = #state{socket = Socket, options = Options}) ->
    case {nats_gateway_transport:peername(Socket), nats_gateway_transport:sockname(Socket)} of
        {{ok, Peername}, {ok, Sockname}} ->
            #{host := Host, config := Config, listener := Listener} = Options,
            {Out, Channel} = nats_gateway_channel:init(Host, #{
                connect => #{},
                client_id => client_id(),
                transport => tcp,
                listener => Listener,
                peername => Peername,
                sockname => Sockname,
                config => Config
            }),
            NState = State#state{channel = Channel, peername = Peername},
            case Options of
                #{refuse := Reason} ->
                    result(prepend(Out, nats_gateway_channel:refuse(Reason, Channel)), NState);
                #{} ->
                    started(result({ok, Out, Channel}, NState), Config)
            end;
        _ ->
            %% Gone before it was looked at, as a port scanner does.
            {stop, {shutdown, closed}, State}
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
            decode(State#state{
                chunks = [Data | Chunks], buffered = Buffered + byte_size(Data), heard = true
            });
        passive ->
            reactivate(State#state{passive = true});
        closed ->
            decode(State#state{closed = true});
        {error, Reason} ->
            {stop, {shutdown, send_error(Reason)}, State};
        other ->
            WasBusy = nats_gateway_channel:busy(Channel),
            case result(nats_gateway_channel:handle_info(Message, Channel), State) of
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
        ok -> {noreply, State#state{channel = Channel}};
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
timeout(Name, State = #state{channel = Channel}) ->
    result(nats_gateway_channel:handle_timeout(Name, Channel), State).

start_timer(_, infinity, State) ->
    State;
start_timer(Name, Ms, State = #state{timers = Timers}) ->
    State#state{timers = Timers#{Name => erlang:start_timer(Ms, self(), Name)}}.

%% -------------------------------------------------------------------------------------------

terminate(Reason, State = #state{socket = Socket, channel = Channel}) ->
    log_end(Reason, State),
    case Channel of
        undefined -> ok;
        _ -> nats_gateway_channel:terminate(Reason, Channel)
    end,
    case Reason of
        {shutdown, client_closed} -> nats_gateway_transport:close(Socket);
        _ -> nats_gateway_transport:linger_close(Socket)
    end.

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

stats(#state{socket = Socket, channel = Channel, options = #{config := #{enable_stats := true}}}) when
    Channel =/= undefined
->
    Octets =
        case nats_gateway_transport:getstat(Socket) of
            {ok, Stat} -> Stat;
            {error, _} -> #{}
        end,
    maps:merge(Octets, nats_gateway_channel:stats(Channel));
stats(_) ->
    #{}.

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
