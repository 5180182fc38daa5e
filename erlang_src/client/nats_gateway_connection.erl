%% One client: owns its socket, the bytes not yet decoded, the timers, and one send per turn.
%% It knows no rule of the protocol; those are the channel's. It runs under `nats_gateway_guard',
%% because what it handles may be credentials.
-module(nats_gateway_connection).

-behaviour(gen_server).

-export([start_link/2]).
-export([start_link/3]).
-export([start_link/4]).
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

-include("nats_gateway.hrl").
-include_lib("kernel/include/logger.hrl").

-type options() :: #{
    host := module(),
    config := nats_gateway_config:config(),
    listener := atom() | binary(),
    refuse => nats_gateway_channel:stop_reason(),
    tls => nats_gateway_tls:plan(),
    websocket => nats_gateway_websocket:settings(),
    %% the socket begins with a PROXY header, which may take so long
    proxy_protocol => pos_integer(),
    peer_cert_as_username => nats_gateway_certificate:name(),
    %% of the socket
    active_n => pos_integer(),
    keepalive => {Idle :: pos_integer(), Interval :: pos_integer(), Count :: pos_integer()},
    %% where the options are kept, shared by all connections of a listener
    key => term()
}.

%% Statistics of a connection with traffic are reported this often. What somebody does who has been
%% quiet is looked for soon.
-define(REPORT_MS, 5000).
-define(REPORT_SOON_MS, 250).

-record(state, {
    socket :: undefined | nats_gateway_transport:socket(),
    options :: options(),
    channel :: undefined | nats_gateway_channel:channel(),
    %% between accept and protocol: who has the socket now, and what is to come after
    worker :: undefined | pid(),
    steps = [] :: [nats_gateway_handshake:step()],
    %% of the reason why it ended, for the log
    detail = none :: none | binary(),
    %% what the bytes of the socket are frames of
    websocket = none :: none | nats_gateway_websocket:websocket(),
    %% cookies of its HTTP request
    cookies = #{} :: #{jwt => binary()},
    %% the last frame, once it is known
    farewell = none :: none | iodata(),
    peername :: undefined | {inet:ip_address(), inet:port_number()},
    %% chunks not yet decoded, newest first, joined once when `need' bytes are there
    chunks = [] :: [binary()],
    buffered = 0 :: non_neg_integer(),
    need = 1 :: non_neg_integer() | infinity,
    %% the socket has used up its chunks and waits for the host to be ready
    passive = false :: boolean(),
    %% the kernel may take much of what is not read yet
    wide = false :: boolean(),
    %% how the input ended, the client's FIN mostly; what it sent before is still answered
    ended = false :: false | nats_gateway_channel:input(),
    %% nobody takes what is sent any more; what the client sent before still counts
    mute = false :: boolean(),
    %% slow consumers: bytes sent since the socket was asked what waits there, messages handled until
    %% then, the bytes that one of them became of late, and the octets that had left the socket when
    %% it was last found stuck, how often in a row
    unchecked = 0 :: non_neg_integer(),
    checked = 0 :: non_neg_integer(),
    each = 0 :: non_neg_integer(),
    stuck = {0, 0} :: {Octets :: integer(), Times :: non_neg_integer()},
    %% messages for the host that go to it together, newest first
    collects = false :: boolean(),
    pace = nats_gateway_pace:new() :: nats_gateway_pace:pace(),
    collected = [] :: [term()],
    count = 0 :: non_neg_integer(),
    %% has a large heap for a while
    busy = false :: boolean(),
    %% the bytes of binaries that a garbage collection allows for
    room = 0 :: non_neg_integer(),
    %% anything from the client since the last look of a timer, and when: milliseconds of monotonic
    %% time
    heard = false :: boolean(),
    heard_at = 0 :: integer(),
    %% bytes that the client had still to take at the PING, and those that it had taken at the last look
    pinged = {0, 0} :: {Behind :: non_neg_integer(), Taken :: integer()},
    %% the answer to the latest ping of a WebSocket, while too much waits to send it
    pong = none :: none | iodata(),
    %% the host wants to know the statistics from time to time; when it was told, in milliseconds of
    %% monotonic time, and after what time it is told again
    reports = false :: boolean(),
    reported_at = never :: never | integer(),
    report_ms = ?REPORT_SOON_MS :: pos_integer(),
    %% of the login, as the timer for it was started
    deadline = infinity :: infinity | integer(),
    timers = #{} :: #{timer() => reference()}
}).

-type timer() ::
    heartbeat
    | heartbeat_wait
    | authentication
    | idle
    | login
    | report
    | drained
    | writing
    | collect
    | busy
    | behind
    | mute
    | left
    | streams.

-define(MAX_TIMER_MS, 16#FFFFFFFF).

%% With much traffic, what a garbage collection copies is mostly what the next one would have found
%% dead. A heap of 256 KiB makes them rare; it is given back after some seconds.
-define(BUSY_HEAP_WORDS, 32768).
-define(BUSY_CHUNK, 32768).
%% So many of them at once: more, and the binaries that they are would have the heap collected.
-define(FEW_CHUNKS, 4).
-define(BUSY_MS, 5000).

%% Compressing takes 320 KB of zlib's memory, which are given back as well.
-define(STREAMS_MS, 5000).

%% For how long messages are collected, and how many at most.
-define(COLLECT_MS, 1).
-define(COLLECT_COUNT, 1000).

%% A socket takes all it is given, so that this process never waits for a client while messages
%% pile up for it. What waits is looked at whenever so much was sent.
-define(CHECK_BYTES, 65536).
%% TLS gets so many bytes at once: it encrypts all that it gets before the socket has any of it. With
%% pieces of 1 MB, what is freed meanwhile left holes in the memory that were as large as what waited.
-define(MAX_PIECE, 131072).
%% A client that is behind is written to for so long before the mailbox gets a turn, which may hold
%% a kick or the client's end. Standalone, what the broker sends waits in its socket meanwhile.
-define(BEHIND_MS, 200).
%% If so many bytes wait, only the latest ping of a WebSocket is answered, and later.
-define(PONGS_BELOW, 65536).
%% All that a client sent before it was gone is here, and only has to be handled: if nothing of it
%% came up for so long, its end will not either. While the host is waited for, the heartbeat decides.
-define(MUTE_MS, 5000).
%% A socket whose input waits for the host does not tell when the client has gone: it is asked.
-define(LEFT_MS, 200).
%% What a message in the mailbox counts besides its bytes.
-define(MESSAGE_OVERHEAD, 256).
%% Times that a client is found stuck within its send timeout.
-define(LOOKS, 4).

%% The options are found under a key, so that they are in no heap, however many connections there
%% are, and in no report.
-spec start_link(nats_gateway_transport:socket(), Key :: term()) -> {ok, pid()}.
start_link(Socket, Key) ->
    nats_gateway_guard:start_link(?MODULE, {Socket, Key}).

%% As EMQX's acceptors start a connection.
-spec start_link
    (esockd_transport, gen_tcp:socket(), Key :: term()) -> {ok, pid()} | {error, term()};
    (RanchRef :: atom(), Transport :: module(), Key :: term()) -> {ok, pid()} | {error, term()}.
start_link(esockd_transport, Port, Key) ->
    nats_gateway_guard:start_link(?MODULE, {{esockd, Port}, Key});
start_link(Ref, _, Key) ->
    nats_gateway_guard:start_link(?MODULE, {{ranch, Ref}, Key}).

%% As ranch 1 does it.
-spec start_link(atom(), gen_tcp:socket(), module(), Key :: term()) ->
    {ok, pid()} | {error, term()}.
start_link(Ref, _, Transport, Key) -> start_link(Ref, Transport, Key).

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

init({Acceptor = {Kind, _}, Key}) when Kind =:= esockd; Kind =:= ranch ->
    {ok, started(Key), {continue, Acceptor}};
init({Socket, Key}) ->
    State = started(Key),
    {ok, State#state{socket = Socket}}.

started(Key) ->
    %% The supervisor's shutdown must reach terminate/2, which says goodbye to the host.
    _ = process_flag(trap_exit, true),
    Options = persistent_term:get(Key),
    #state{options = Options#{key => Key}}.

handle_continue({esockd, Port}, State) ->
    {ok, Socket} = nats_gateway_transport:from_esockd(Port),
    greet(State#state{socket = Socket});
handle_continue({ranch, Ref}, State) ->
    {ok, Socket} = nats_gateway_transport:from_ranch(Ref),
    greet(State#state{socket = Socket}).

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
handle_cast({socket_lost, _}, State) ->
    gone(State);
handle_cast({drain, _}, State = #state{channel = Channel, worker = Worker}) when
    Channel =:= undefined; is_pid(Worker)
->
    {stop, {shutdown, drained}, State};
handle_cast({drain, Ms}, State) ->
    _ = send_lame_duck(State),
    case Ms of
        0 -> close(drained, State);
        _ -> {noreply, start_timer(drained, Ms, State)}
    end;
handle_cast(configure, State = #state{channel = Channel, options = #{key := Key}}) ->
    Options = #{config := Config} = persistent_term:get(Key, State#state.options),
    NState = State#state{options = Options#{key => Key}},
    case Channel of
        undefined -> {noreply, NState};
        _ -> result(nats_gateway_channel:configure(Config, Channel), NState)
    end;
handle_cast({message, Message}, State) ->
    handle_info(Message, State);
handle_cast(_, State) ->
    {noreply, State}.

greet(State = #state{socket = Socket, options = Options = #{host := Host, config := Config}}) ->
    %% A socket that takes no options is closed: that comes up below.
    _ =
        case Options of
            #{keepalive := KeepAlive} -> nats_gateway_transport:keep_alive(Socket, KeepAlive);
            #{} -> ok
        end,
    Steps = nats_gateway_handshake:steps(
        maps:get(tls, Options, none), maps:get(websocket, Options, none)
    ),
    Proxy = [Step || Step <- [proxy, peername], is_map_key(proxy_protocol, Options)],
    establish([peername | Proxy] ++ Steps, State#state{
        reports = maps:get(enable_stats, Config) andalso nats_gateway_channel:reports(Host),
        collects = nats_gateway_channel:collects(Host)
    }).

establish(_, State = #state{mute = true}) ->
    {stop, {shutdown, client_closed}, State};
establish([], State) ->
    open(State);
establish([peername | Steps], State = #state{socket = Socket}) ->
    case nats_gateway_transport:peername(Socket) of
        {ok, Peername} ->
            establish(Steps, State#state{peername = Peername});
        {error, _} ->
            %% Gone before it was looked at, as a port scanner does.
            gone(State)
    end;
establish([info | Steps], State) ->
    case introduce(State) of
        {noreply, NState} -> establish(Steps, NState);
        Stop -> Stop
    end;
establish([{websocket, Agreed} | Steps], State = #state{peername = {Address, Port}}) ->
    #{config := #{max_payload_size := MaxPayload}, websocket := Settings} = State#state.options,
    establish(Steps, State#state{
        websocket = nats_gateway_websocket:open(Agreed, Settings#{max_payload_size => MaxPayload}),
        cookies = maps:get(cookies, Agreed, #{}),
        peername = {maps:get(address, Agreed, Address), maps:get(port, Agreed, Port)}
    });
establish(_, State = #state{channel = undefined, options = #{refuse := Reason} = Options}) when
    not is_map_key(websocket, Options)
->
    %% What it would have to be told in, it is not worth.
    log_end({shutdown, Reason}, State),
    {stop, {shutdown, Reason}, State};
establish([Step | Steps], State = #state{socket = Socket, options = Options}) ->
    Settings =
        case Step of
            proxy -> maps:get(proxy_protocol, Options);
            upgrade -> maps:get(websocket, Options);
            _ -> maps:get(tls, Options)
        end,
    case nats_gateway_handshake:start(Step, Socket, Settings) of
        {ok, Worker} -> {noreply, State#state{socket = undefined, worker = Worker, steps = Steps}};
        {error, Failure} -> not_established(Failure, State)
    end.

established({ok, Socket, More}, State = #state{steps = Steps}) ->
    establish(More ++ Steps, State#state{socket = Socket, worker = undefined, steps = []});
established({error, Failure}, State) ->
    not_established(Failure, State#state{worker = undefined}).

%% A socket that cannot be used any more, in whatever words it says so.
gone(State = #state{channel = Channel}) ->
    Channel =/= undefined orelse log_end({shutdown, client_closed}, State),
    {stop, {shutdown, client_closed}, State}.

not_established({Reason, Detail}, State) ->
    Failed = State#state{detail = Detail},
    State#state.channel =/= undefined orelse log_end({shutdown, Reason}, Failed),
    {stop, {shutdown, Reason}, Failed}.

%% INFO, or why the client can't stay.
introduce(State = #state{socket = Socket, options = Options, peername = Peername}) ->
    case nats_gateway_transport:sockname(Socket) of
        {ok, Sockname} ->
            #{host := Host, config := Config, listener := Listener} = Options,
            Client = #{
                connect => #{},
                client_id => client_id(),
                transport => maps:get(transport, Options, tcp),
                listener => Listener,
                peername => Peername,
                sockname => Sockname,
                peercert => nossl,
                cookies => State#state.cookies,
                server_info =>
                    case Options of
                        #{tls := Tls} ->
                            Secured = nats_gateway_transport:is_secured(Socket),
                            Info = nats_gateway_tls:server_info(Tls, Secured),
                            case Options of
                                %% as nats-server
                                #{websocket := _} -> Info#{tls_available => true};
                                #{} -> Info
                            end;
                        #{} ->
                            #{}
                    end,
                config => Config
            },
            introduce(Host, Client, State);
        {error, _} ->
            gone(State)
    end.

introduce(Host, Client, State = #state{options = #{refuse := Reason}}) ->
    {Out, Channel} = nats_gateway_channel:init(Host, Client),
    case result({ok, Out, Channel}, State) of
        %% Sent on its own: clients take the frame with INFO for INFO.
        {noreply, NState} -> result(nats_gateway_channel:refuse(Reason, Channel), NState);
        Stop -> Stop
    end;
introduce(Host, Client, State) ->
    case nats_gateway_channel:prepare(Host, Client) of
        {ok, Prepared} ->
            {Out, Channel} = nats_gateway_channel:init(Host, Prepared),
            result({ok, Out, Channel}, State);
        {error, Reason} ->
            %% Without INFO: nats.js would wait for 20 s after it.
            {stop, {shutdown, Reason}, State}
    end.

%% From here on the client's operations are read.
open(State = #state{socket = Socket, channel = Channel, options = Options}) ->
    #{config := Config = #{default_heartbeat_interval := Heartbeat, idle_timeout := Idle}} =
        Options,
    case activate(?FEW_CHUNKS, State) of
        ok ->
            Started = start_timer(
                heartbeat,
                Heartbeat,
                start_timer(idle, Idle, State#state{
                    channel = identify(Socket, Options, Channel), heard_at = now_ms()
                })
            ),
            #{auth_required := Required, login := Login, authentication_timeout := Timeout} = Config,
            %% also where silence would be a login: as nats-server with a no_auth_user
            case Required orelse Login =/= nats_gateway_login:none() of
                true -> {noreply, start_timer(authentication, Timeout, Started)};
                false -> {noreply, Started}
            end;
        {error, _} ->
            gone(State)
    end.

%% By its certificate.
identify(Socket, Options, Channel) ->
    case nats_gateway_transport:peercert(Socket) of
        nossl ->
            Channel;
        Peercert ->
            Which = maps:get(peer_cert_as_username, Options, disabled),
            Name = nats_gateway_certificate:name(Which, Peercert),
            nats_gateway_channel:identify(Peercert, Name, Channel)
    end.

%% Fits every client: jnats reads it as an int.
client_id() -> erlang:unique_integer([positive, monotonic]) band 16#7FFFFFFF.

handle_info({timeout, Timer, Name}, State = #state{timers = Timers}) when is_atom(Name) ->
    case Timers of
        #{Name := Timer} -> timeout(Name, State#state{timers = maps:remove(Name, Timers)});
        #{} -> {noreply, State}
    end;
handle_info({Worker, Result}, State = #state{worker = Worker}) when is_pid(Worker) ->
    established(Result, State);
handle_info({'EXIT', Port, _}, State) when is_port(Port) ->
    %% A closed socket says so in its own words as well.
    {noreply, State};
handle_info({'EXIT', _, Reason}, State) ->
    {stop, Reason, State};
handle_info(_, State = #state{channel = undefined}) ->
    {noreply, State};
handle_info(Message, State = #state{socket = Socket}) ->
    case nats_gateway_transport:classify(Message, Socket) of
        other -> deliver(Message, report_later(State));
        Event -> input(Event, State)
    end.

input(Event, State = #state{collected = []}) ->
    handle_input(Event, State);
input(Event, State) ->
    case hand_over_collected(State) of
        {noreply, NState} -> handle_input(Event, NState);
        Stop -> Stop
    end.

handle_input({data, _} = Input, State = #state{heard = false}) ->
    handle_input(Input, answered(State#state{heard = true}));
handle_input({data, Data}, State) ->
    received(
        Data,
        report_later((busy(byte_size(Data) >= ?BUSY_CHUNK, State))#state{
            heard_at = now_ms(), pace = nats_gateway_pace:heard(State#state.pace)
        })
    );
handle_input(passive, State) ->
    reactivate(State#state{passive = true});
handle_input(closed, State = #state{channel = Channel}) ->
    case nats_gateway_channel:is_verifying(Channel) of
        %% It takes no core from those that wait.
        true -> gone(State);
        false -> decode(ended(eof, State))
    end;
handle_input({error, tls_alert}, State) ->
    {stop, {shutdown, tls_alert}, State};
handle_input({error, Reason}, State) ->
    {stop, {shutdown, send_error(Reason)}, State}.

%% A message for the host. What a waiting client waits for may be in it.
deliver(Message, State = #state{collects = true, pace = Pace, channel = Channel}) ->
    case
        nats_gateway_channel:busy(Channel) orelse
            nats_gateway_pace:next(erlang:monotonic_time(microsecond), Pace)
    of
        true -> deliver_collected([Message], State);
        {at_once, NPace} -> deliver_collected([Message], State#state{pace = NPace});
        {collect, NPace} -> collect(Message, State#state{pace = NPace})
    end;
deliver(Message, State = #state{channel = Channel}) ->
    handled(nats_gateway_channel:handle_info(Message, Channel), State).

collect(Message, State = #state{collected = []}) ->
    NState = State#state{collected = [Message], count = 1},
    {noreply, busy(true, start_timer(collect, ?COLLECT_MS, NState))};
collect(Message, State = #state{collected = Messages, count = Count}) when
    Count < ?COLLECT_COUNT
->
    {noreply, State#state{collected = [Message | Messages], count = Count + 1}};
collect(Message, State) ->
    deliver_collected([Message], State).

hand_over_collected(State) -> deliver_collected([], State).

busy(true, State = #state{busy = false}) ->
    _ = process_flag(min_heap_size, ?BUSY_HEAP_WORDS),
    start_timer(busy, ?BUSY_MS, State#state{busy = true});
busy(_, State) ->
    State.

%% What was collected, and what has come after it.
deliver_collected(More, State = #state{collected = []}) ->
    handled(nats_gateway_channel:handle_messages(More, State#state.channel), State);
deliver_collected(More, State = #state{collected = Messages, count = Count, pace = Pace}) ->
    All = lists:reverse(Messages, More),
    handled(
        nats_gateway_channel:handle_messages(All, State#state.channel),
        cancel_timer(collect, State#state{
            collected = [], count = 0, pace = nats_gateway_pace:collected(Count, Pace)
        })
    ).

handled(Handled, State = #state{channel = Channel}) ->
    WasBusy = nats_gateway_channel:busy(Channel),
    case result(Handled, State) of
        {noreply, NState = #state{}} when WasBusy -> decode(NState);
        Result -> Result
    end.

received(Data, State = #state{websocket = none}) ->
    decode(add(Data, State));
received(Data, State = #state{websocket = Websocket}) ->
    {Pongs, NWebsocket} = nats_gateway_websocket:feed(Data, Websocket),
    NState = State#state{websocket = NWebsocket},
    case Pongs of
        [] ->
            decode(NState);
        _ ->
            case answer(Pongs, NState) of
                {ok, Sent} -> decode(Sent);
                {error, Reason, Failed} -> {stop, {shutdown, send_error(Reason)}, Failed}
            end
    end.

%% RFC 6455 lets a server answer the latest ping only (5.5.3).
answer(_, State = #state{mute = true}) ->
    {ok, State};
answer(Pongs, State = #state{socket = Socket}) ->
    case nats_gateway_transport:pending(Socket) of
        {ok, Pending, _} when Pending < ?PONGS_BELOW ->
            transmit(Pongs, iolist_size(Pongs), 0, State#state{pong = none});
        {ok, _, Gone} ->
            {ok, watch(Gone, State#state{pong = lists:last(Pongs)})};
        {error, _} ->
            {ok, mute(State)}
    end.

add(Data, State = #state{chunks = Chunks, buffered = Buffered}) ->
    State#state{chunks = [Data | Chunks], buffered = Buffered + byte_size(Data)}.

ended(Input, State = #state{ended = false}) -> State#state{ended = Input};
ended(_, State) -> State.

%% Decode what is there, unless more is needed or the host is being waited for.
decode(State = #state{buffered = Buffered, need = Need, channel = Channel}) ->
    case nats_gateway_channel:busy(Channel) of
        true -> paused(State);
        false when Buffered < Need; Buffered =:= 0 -> fetch(State);
        false -> decode(join(State#state.chunks), [], State)
    end.

%% What the frames that have come hold.
fetch(State = #state{websocket = none}) ->
    reactivate(State);
fetch(State = #state{websocket = Websocket}) ->
    case nats_gateway_websocket:take(Websocket) of
        {data, Data, NWebsocket} ->
            decode(add(Data, streams(State#state{websocket = NWebsocket})));
        {empty, NWebsocket} ->
            reactivate(streams(State#state{websocket = NWebsocket}));
        {ended, client_closed, Close, NWebsocket} ->
            reactivate(ended(eof, State#state{websocket = NWebsocket, farewell = Close}));
        {ended, Reason, Close, NWebsocket} ->
            NState = State#state{websocket = NWebsocket, farewell = Close},
            reactivate(ended({error, Reason}, NState))
    end.

join([Chunk]) -> Chunk;
join(Chunks) -> iolist_to_binary(lists:reverse(Chunks)).

decode(Bytes, Out, State = #state{channel = Channel}) ->
    case nats_gateway_nif:decode(Bytes, nats_gateway_channel:decoder(Channel)) of
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

continue({noreply, State}) -> decode(State);
continue(Stop) -> Stop.

reactivate(State = #state{ended = Ended, channel = Channel}) when Ended =/= false ->
    case nats_gateway_channel:busy(Channel) of
        true -> paused(State);
        false -> result(nats_gateway_channel:handle_ops([Ended], Channel), State)
    end;
reactivate(State = #state{passive = false}) ->
    {noreply, State};
reactivate(State = #state{channel = Channel}) ->
    case nats_gateway_channel:busy(Channel) of
        true ->
            paused(State);
        false ->
            case activate(State) of
                ok -> {noreply, State#state{passive = false}};
                {error, _} when State#state.mute -> reactivate(ended(eof, State));
                {error, _} -> gone(State)
            end
    end.

%% What comes in large chunks waits in the kernel rather than here.
activate(State = #state{busy = true}) -> activate(?FEW_CHUNKS, State);
activate(State) -> activate(nats_gateway_transport:max_active_n(), State).

activate(Chunks, #state{socket = Socket, options = Options}) ->
    nats_gateway_transport:activate(min(Chunks, maps:get(active_n, Options, Chunks)), Socket).

%% The input waits for the host. If nobody is there any more, little of it is worth the work.
paused(State = #state{passive = Passive, ended = Ended, timers = Timers}) when
    Passive orelse Ended =/= false, not is_map_key(left, Timers)
->
    {noreply, start_timer(left, ?LEFT_MS, State)};
paused(State) ->
    {noreply, State}.

%% Where old data refers to more bytes of binaries than there is room for, every garbage collection is one
%% of the whole heap. With very many subscriptions, each would cost the more for it.
make_room(State = #state{channel = Channel, room = Room}) ->
    case nats_gateway_channel:held(Channel) of
        Held when Held >= Room ->
            {min_bin_vheap_size, Least} = erlang:system_info(min_bin_vheap_size),
            WordSize = erlang:system_info(wordsize),
            NRoom = max(Least * WordSize, 2 * Held),
            _ = process_flag(min_bin_vheap_size, NRoom div WordSize),
            State#state{room = NRoom};
        _ ->
            State
    end.

%% The one send of this turn.
result({ok, Out, Channel}, State) ->
    case send(Out, State#state{channel = Channel}) of
        {ok, NState} ->
            Unsent = nats_gateway_channel:unsent(Channel),
            case Unsent > 0 orelse nats_gateway_channel:is_behind(Channel) of
                true -> catch_up(now_ms() + ?BEHIND_MS, NState);
                false -> {noreply, login_timer(make_room(NState))}
            end;
        {error, Reason, NState} ->
            {stop, {shutdown, send_error(Reason)}, NState}
    end;
result({stop, Reason, Out, Channel}, State) ->
    NState =
        case send(Out, State#state{channel = Channel}) of
            {ok, Sent} -> Sent;
            {error, _, Sent} -> Sent
        end,
    close(Reason, NState).

%% What the channel has for a client is written as long as the client takes it.
catch_up(Until, State) ->
    case check(0, State) of
        {ok, NState = #state{channel = Channel, timers = Timers}} ->
            case nats_gateway_channel:is_behind(Channel) of
                false ->
                    {noreply, login_timer(NState)};
                true ->
                    case now_ms() < Until of
                        true -> go_on(Until, NState);
                        false when is_map_key(behind, Timers) -> {noreply, login_timer(NState)};
                        false -> {noreply, login_timer(start_timer(behind, 0, NState))}
                    end
            end;
        {error, Reason, NState} ->
            {stop, {shutdown, send_error(Reason)}, NState}
    end.

go_on(Until, State = #state{channel = Channel}) ->
    case nats_gateway_channel:continue(Channel) of
        {ok, Out, NChannel} ->
            case send(Out, State#state{channel = NChannel}) of
                {ok, NState} -> catch_up(Until, NState);
                {error, Reason, NState} -> {stop, {shutdown, send_error(Reason)}, NState}
            end;
        Stop ->
            result(Stop, State)
    end.

send(_, State = #state{socket = undefined}) ->
    %% Nothing goes out in the middle of a handshake.
    {ok, State};
send(_, State = #state{mute = true}) ->
    {ok, State};
send(Out, State) ->
    case iolist_size(Out) of
        0 -> {ok, State};
        Size -> send(Out, Size, max_piece(State), State)
    end.

max_piece(#state{websocket = none, socket = Socket}) ->
    case nats_gateway_transport:is_secured(Socket) of
        true -> ?MAX_PIECE;
        false -> infinity
    end;
max_piece(#state{websocket = Websocket, channel = Channel}) ->
    #decoder{max_payload = MaxPayload} = nats_gateway_channel:decoder(Channel),
    nats_gateway_websocket:max_frame(MaxPayload, Websocket).

%% Atoms are greater than numbers.
send(Out, Size, Max, State) when Size =< Max ->
    send_piece(Out, Size, 0, State);
send(Out, Size, Max, State) ->
    {Piece, Rest} = nats_gateway_transport:split(erlang:iolist_to_iovec(Out), Max),
    case send_piece(Piece, Max, Size - Max, State) of
        {ok, NState} -> send(Rest, Size - Max, Max, NState);
        Error -> Error
    end.

send_piece(Piece, Size, Behind, State = #state{websocket = none}) ->
    transmit(Piece, Size, Behind, State);
send_piece(_, _, _, State = #state{mute = true}) ->
    {ok, State};
send_piece(Piece, Size, Behind, State = #state{websocket = Websocket, channel = Channel}) ->
    %% Who has not logged in is not worth zlib's memory.
    Compress = nats_gateway_channel:is_connected(Channel),
    {Frame, NWebsocket} = nats_gateway_websocket:frame(Piece, Size, Compress, Websocket),
    transmit(Frame, Size, Behind, streams(State#state{websocket = NWebsocket})).

%% Behind: bytes that are to follow it.
transmit(_, _, _, State = #state{mute = true}) ->
    {ok, State};
transmit(Bytes, Size, Behind, State = #state{socket = Socket, unchecked = Unchecked}) ->
    case nats_gateway_transport:send(Socket, Bytes) of
        ok when Unchecked + Size < ?CHECK_BYTES ->
            {ok, State#state{unchecked = Unchecked + Size}};
        ok ->
            check(Behind, State#state{unchecked = Unchecked + Size});
        {error, Reason} ->
            case send_error(Reason) of
                client_closed -> {ok, mute(State)};
                _ -> {error, Reason, State}
            end
    end.

%% Over TLS nothing can be sent after the client's FIN, when much of what it sent may have come and
%% not been looked at yet: the end of the input ends the connection, as without TLS.
mute(State) -> start_timer(mute, ?MUTE_MS, State#state{mute = true, heard = false}).

%% nats-server's bound of what may wait for a client, in the socket or before it. What is in the
%% mailbox will become such bytes: it is taken to be like what was handled since the last look.
check(_, State = #state{mute = true}) ->
    {ok, State};
check(Behind, State = #state{socket = Socket, channel = Channel, options = #{config := Config}}) ->
    #{max_pending := MaxPending} = Config,
    case nats_gateway_transport:pending(Socket) of
        {ok, Pending, Gone} ->
            {message_queue_len, Waiting} = process_info(self(), message_queue_len),
            Unsent = Behind + nats_gateway_channel:unsent(Channel),
            NState = #state{each = Each} = checked(handled_messages(State), State),
            if
                Pending + Unsent + Waiting * (Each + ?MESSAGE_OVERHEAD) > MaxPending ->
                    {error, slow_consumer, NState};
                Pending > 0 ->
                    {ok, watch(Gone, NState)};
                true ->
                    {ok, NState}
            end;
        {error, _} ->
            {ok, mute(State)}
    end.

%% Those in the mailbox are messages of the broker, or chunks with many of them.
handled_messages(#state{collects = true, channel = Channel}) ->
    nats_gateway_channel:fanned_out(Channel);
handled_messages(#state{channel = Channel}) -> nats_gateway_channel:sent(Channel).

checked(Handled, State = #state{checked = Handled}) ->
    State#state{unchecked = 0};
checked(Handled, State = #state{unchecked = Bytes, checked = Checked}) ->
    State#state{unchecked = 0, checked = Handled, each = Bytes div max(1, Handled - Checked)}.

%% Something waits: it is looked at again, whether some of it leaves.
watch(_, State = #state{timers = Timers}) when is_map_key(writing, Timers) -> State;
watch(Gone, State) -> look_later(State#state{stuck = {Gone, 0}}).

look_later(State = #state{options = #{config := #{send_timeout := SendTimeout}}}) ->
    start_timer(writing, max(1, SendTimeout div ?LOOKS), State).

%% nats-server's write deadline.
look(State = #state{mute = true}) ->
    {noreply, State};
look(State = #state{socket = Socket, stuck = {Before, Times}}) ->
    case nats_gateway_transport:pending(Socket) of
        {ok, 0, _} ->
            answer_latest(State);
        {ok, _, Before} when Times + 1 >= ?LOOKS ->
            {stop, {shutdown, slow_consumer}, State};
        {ok, _, Before} ->
            {noreply, look_later(State#state{stuck = {Before, Times + 1}})};
        {ok, _, Gone} ->
            answer_latest(look_later(State#state{stuck = {Gone, 0}}));
        {error, _} ->
            {noreply, mute(State)}
    end.

answer_latest(State = #state{pong = none}) ->
    {noreply, State};
answer_latest(State = #state{pong = Pong}) ->
    case answer([Pong], State) of
        {ok, NState} -> {noreply, NState};
        {error, Reason, NState} -> {stop, {shutdown, send_error(Reason)}, NState}
    end.

%% A client that is not there any more, or that does not read.
send_error(timeout) -> slow_consumer;
send_error(Reason) when
    Reason =:= closed; Reason =:= epipe; Reason =:= econnreset; Reason =:= einval; Reason =:= tls_alert
->
    client_closed;
send_error(Reason) -> Reason.

%% EMQX counts the reasons that are atoms, others it takes for crashes.
close({error, Reason}, State) when is_atom(Reason) -> {stop, {shutdown, Reason}, State};
close({denied, _}, State) -> {stop, {shutdown, permission_denied}, State};
close(Reason, State) -> {stop, {shutdown, Reason}, State}.

%% -------------------------------------------------------------------------------------------
%% Timers

timeout(heartbeat, State = #state{heard_at = HeardAt, options = #{config := Config}}) ->
    case Config of
        #{default_heartbeat_interval := infinity} ->
            {noreply, State};
        #{default_heartbeat_interval := Interval} ->
            case HeardAt + Interval - now_ms() of
                Left when Left > 0 -> {noreply, start_timer(heartbeat, Left, State)};
                _ -> ping(State)
            end
    end;
timeout(heartbeat_wait, State = #state{passive = true, channel = Channel}) ->
    %% A PONG may be in the socket, whose input waits for the host.
    case nats_gateway_channel:busy(Channel) of
        true -> {noreply, await_pong(State)};
        false -> heartbeat_wait(State)
    end;
timeout(heartbeat_wait, State) ->
    heartbeat_wait(State);
timeout(behind, State) ->
    case catch_up(now_ms() + ?BEHIND_MS, State) of
        {noreply, NState} -> decode(NState);
        Stop -> Stop
    end;
timeout(idle, State = #state{channel = Channel}) ->
    case nats_gateway_channel:handle_timeout(idle, Channel) of
        {ok, [], NChannel} -> {noreply, State#state{channel = NChannel}, hibernate};
        Stop -> result(Stop, State)
    end;
timeout(report, State = #state{channel = Channel}) ->
    %% The memory that it took is given back.
    NChannel = nats_gateway_channel:report(octets(State), Channel),
    {noreply, State#state{channel = NChannel, reported_at = now_ms()}, hibernate};
timeout(streams, State = #state{websocket = Websocket}) ->
    {noreply, State#state{websocket = nats_gateway_websocket:at_rest(Websocket)}};
timeout(busy, State) ->
    {min_heap_size, Words} = erlang:system_info(min_heap_size),
    _ = process_flag(min_heap_size, Words),
    {noreply, make_room(State#state{busy = false, room = 0}), hibernate};
timeout(collect, State) ->
    hand_over_collected(State);
timeout(mute, State = #state{heard = Heard, channel = Channel}) ->
    case Heard orelse nats_gateway_channel:busy(Channel) of
        true -> {noreply, start_timer(mute, ?MUTE_MS, State#state{heard = false})};
        false -> {stop, {shutdown, client_closed}, State}
    end;
timeout(left, State = #state{channel = Channel, socket = Socket, ended = Ended}) ->
    case nats_gateway_channel:busy(Channel) of
        false ->
            {noreply, State};
        true ->
            case Ended =/= false orelse nats_gateway_transport:has_left(Socket) of
                true -> paused(State#state{channel = nats_gateway_channel:leave(Channel)});
                false -> paused(widen(State))
            end
    end;
timeout(writing, State = #state{socket = undefined}) ->
    {noreply, State};
timeout(writing, State) ->
    look(State);
timeout(drained, State) ->
    %% The listener that closes at this moment would take another reason for a failure.
    {stop, normal, leave({shutdown, drained}, State)};
timeout(login, State = #state{channel = Channel, deadline = Deadline}) ->
    case now_ms() of
        Now when Now < Deadline -> {noreply, start_login_timer(State)};
        _ -> result(nats_gateway_channel:handle_timeout(login, Channel), State)
    end;
timeout(Name, State = #state{channel = Channel}) ->
    result(nats_gateway_channel:handle_timeout(Name, Channel), State).

%% Of more room the other side hears with the next chunk.
widen(State = #state{passive = true, wide = false, socket = Socket}) ->
    ok = nats_gateway_transport:widen(Socket),
    case nats_gateway_transport:activate(1, Socket) of
        ok -> State#state{wide = true, passive = false};
        %% The end of the connection comes up when the input is read again.
        {error, _} -> State#state{wide = true}
    end;
widen(State) ->
    State.

ping(State = #state{channel = Channel, socket = Socket}) ->
    Pinged =
        case nats_gateway_transport:taken(Socket) of
            {ok, _, Behind, Taken} -> {Behind, Taken};
            {error, _} -> {0, 0}
        end,
    result(
        nats_gateway_channel:handle_timeout(heartbeat, Channel),
        await_pong(State#state{heard = false, pinged = Pinged})
    ).

%% Whatever a client sends, it is there.
answered(State = #state{timers = Timers, options = #{config := Config}}) when
    is_map_key(heartbeat_wait, Timers)
->
    #{default_heartbeat_interval := Interval} = Config,
    start_timer(heartbeat, Interval, cancel_timer(heartbeat_wait, State));
answered(State) ->
    State.

await_pong(State = #state{options = #{config := #{heartbeat_wait_timeout := Wait}}}) ->
    start_timer(heartbeat_wait, Wait, State).

heartbeat_wait(State = #state{channel = Channel}) ->
    case still_taking(State) of
        {true, NState} -> {noreply, await_pong(NState)};
        false -> result(nats_gateway_channel:handle_timeout(heartbeat_wait, Channel), State)
    end.

%% A client that has still to read what it was sent before the PING. If it takes nothing of that, the
%% write deadline is for it.
still_taking(#state{mute = true}) ->
    false;
still_taking(State = #state{socket = Socket, pinged = {Behind, Before}}) ->
    case nats_gateway_transport:taken(Socket) of
        {ok, Pending, _, Taken} when Pending > 0 ->
            {true, watch(Taken, State#state{pinged = {Behind, Taken}})};
        {ok, 0, _, Taken} when Behind > 0, Taken > Before ->
            {true, State#state{pinged = {Behind, Taken}}};
        _ ->
            false
    end.

now_ms() -> erlang:monotonic_time(millisecond).

%% A message that is under way keeps what it needs: the next that comes of it is seen here.
streams(State = #state{websocket = Websocket, timers = Timers}) when
    not is_map_key(streams, Timers)
->
    case nats_gateway_websocket:has_streams(Websocket) of
        true -> start_timer(streams, ?STREAMS_MS, State);
        false -> State
    end;
streams(State) ->
    State.

login_timer(State = #state{channel = Channel, deadline = Deadline}) ->
    case nats_gateway_channel:deadline(Channel) of
        Deadline -> State;
        New -> start_login_timer(State#state{deadline = New})
    end.

%% Some logins last longer than a timer can wait. That of an earlier login finds none of its own.
start_login_timer(State = #state{deadline = infinity, timers = Timers}) ->
    State#state{timers = maps:remove(login, Timers)};
start_login_timer(State = #state{deadline = Deadline}) ->
    Left = max(0, Deadline - now_ms()),
    start_timer(login, min(Left, ?MAX_TIMER_MS), State).

report_later(State = #state{reports = true, timers = Timers}) when
    not is_map_key(report, Timers)
->
    Ms = report_ms(State),
    start_timer(report, Ms, State#state{report_ms = Ms});
report_later(State) ->
    State.

report_ms(#state{reported_at = never}) ->
    ?REPORT_SOON_MS;
report_ms(#state{reported_at = At, report_ms = Last}) ->
    case now_ms() - At > ?REPORT_MS of
        true -> ?REPORT_SOON_MS;
        false -> min(2 * Last, ?REPORT_MS)
    end.

start_timer(_, infinity, State) ->
    State;
start_timer(Name, Ms, State = #state{timers = Timers}) ->
    State#state{timers = Timers#{Name => erlang:start_timer(Ms, self(), Name)}}.

cancel_timer(Name, State = #state{timers = Timers}) ->
    case maps:take(Name, Timers) of
        {Timer, NTimers} ->
            %% If it has ended already, its message is not of any timer.
            _ = erlang:cancel_timer(Timer, [{async, true}, {info, false}]),
            State#state{timers = NTimers};
        error ->
            State
    end.

%% -------------------------------------------------------------------------------------------

terminate(Reason, State = #state{worker = Worker}) when is_pid(Worker) ->
    %% Half-way through a handshake there is nobody to take leave of.
    ok = nats_gateway_handshake:stop(Worker),
    _ = leave(Reason, State),
    ok;
terminate(Reason, State = #state{socket = undefined}) ->
    _ = leave(Reason, State),
    ok;
terminate(Reason, State = #state{socket = Socket}) ->
    %% The listener closes.
    _ = Reason =:= shutdown andalso send_lame_duck(State),
    _ = leave(Reason, State),
    case nats_gateway_ending:socket(reason(Reason)) of
        abort ->
            nats_gateway_transport:abort(Socket);
        _ when State#state.websocket =/= none ->
            _ = nats_gateway_transport:send(Socket, farewell(Reason, State)),
            nats_gateway_transport:linger_close(Socket);
        close ->
            nats_gateway_transport:close(Socket);
        linger ->
            nats_gateway_transport:linger_close(Socket)
    end.

farewell(Reason, #state{farewell = none}) ->
    {Code, Text} = nats_gateway_ending:websocket_close(reason(Reason)),
    nats_gateway_websocket:close_frame(Code, Text);
farewell(_, #state{farewell = Close}) ->
    Close.

reason({shutdown, Reason}) -> Reason;
reason(Reason) -> Reason.

send_lame_duck(State = #state{channel = undefined}) ->
    {ok, State};
send_lame_duck(State = #state{channel = Channel}) ->
    send(nats_gateway_channel:lame_duck(Channel), State).

%% The host is told before the socket is closed, which may take a while.
leave(_, State = #state{channel = undefined}) ->
    State;
leave(Reason, State = #state{channel = Channel, reports = Reports, collected = Collected}) ->
    log_end(Reason, State),
    Last =
        case Reports of
            true -> nats_gateway_channel:report(octets(State), Channel);
            false -> Channel
        end,
    ok = nats_gateway_channel:terminate(Reason, lists:reverse(Collected), Last),
    State#state{channel = undefined, collected = []}.

%% The one place that words why a connection ended. Of those that are refused there may be any number.
log_end({shutdown, Reason}, State = #state{channel = Channel, options = Options}) ->
    Level = nats_gateway_ending:log_level(Reason),
    IsConnected = Channel =/= undefined andalso nats_gateway_channel:is_connected(Channel),
    IsLogged =
        logger:allow(Level, ?MODULE) andalso
            (IsConnected orelse Level =:= info orelse
                nats_gateway_refusals:may_log(maps:get(listener, Options))),
    IsLogged andalso ?LOG(Level, maps:merge(report(Reason, State), stats(State)));
log_end(_, _) ->
    ok.

report(Reason, #state{detail = Detail, peername = Peername, options = #{listener := Listener}}) ->
    Known = #{
        msg => connection_closed,
        peername => address(Peername),
        listener => Listener,
        reason => Reason
    },
    case Detail of
        none -> Known;
        _ -> Known#{detail => Detail}
    end.

address({Host, Port}) -> iolist_to_binary([inet:ntoa(Host), $:, integer_to_list(Port)]);
address(undefined) -> undefined.

stats(State = #state{channel = Channel, options = #{config := #{enable_stats := true}}}) when
    Channel =/= undefined
->
    Octets = maps:with([octets_received, octets_sent], octets(State)),
    maps:merge(Octets, nats_gateway_channel:stats(Channel));
stats(_) ->
    #{}.

octets(#state{socket = undefined}) ->
    #{};
octets(#state{socket = Socket}) ->
    case nats_gateway_transport:getstat(Socket) of
        {ok, Stat} -> Stat;
        {error, _} -> #{}
    end.

%% Bytes of the client may hold credentials: they are not shown.
format_status(Status = #{state := State}) ->
    #state{channel = Channel, timers = Timers} = State,
    Status#{
        state := #{
            peername => State#state.peername,
            buffered => State#state.buffered,
            need => State#state.need,
            timers => maps:keys(Timers),
            channel => Channel =/= undefined andalso nats_gateway_channel:info(Channel)
        }
    }.
