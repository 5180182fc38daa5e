%% The NATS protocol state machine of one client: operations and broker events in, bytes out.
%%
%% The channel has no process and no socket. It asks for the time only if a login has limits of
%% time or there are rules for devices, and at CONNECT, PING and PONG. All its effects are calls to
%% the host module that it was given. If the host answers `wait', the operations that follow stay in
%% `todo' until the host's completion arrives. So replies keep their order without a queue of open
%% promises.
-module(nats_gateway_channel).

-export([prepare/2]).
-export([init/2]).
-export([identify/3]).
-export([decoder/1]).
-export([continue/1]).
-export([unsent/1]).
-export([is_connected/1]).
-export([is_verifying/1]).
-export([leave/1]).
-export([refuse/2]).
-export([handle_ops/2]).
-export([handle_info/2]).
-export([collects/1]).
-export([handle_messages/2]).
-export([handle_call/2]).
-export([answer/4]).
-export([feed/3]).
-export([client_event/3]).
-export([event_facts/1]).
-export([reports/1]).
-export([report/2]).
-export([resume/1]).
-export([configure/2]).
-export([handle_timeout/2]).
-export([lame_duck/1]).
-export([terminate/3]).
-export([info/1]).
-export([client_id/1]).
-export([description/1]).
-export([stats/1]).
-export([rtt/1]).
-export([account/1]).
-export([sample/1]).
-export([sent/1]).
-export([fanned_out/1]).
-export([held/1]).
-export([subscriptions/1]).

-include("nats_gateway.hrl").
-include("nats_gateway_channel.hrl").
-include_lib("kernel/include/logger.hrl").

-export_type([channel/0, input/0, result/0, stop_reason/0, next/0, description/0]).

%% `{error, _}' is the decoder's error for the bytes that follow the operations before it. `eof' is
%% the client's FIN. Both wait for their turn.
-type input() :: nats_gateway_nif:op() | {error, error_reason()} | eof.

-type error_reason() :: nats_gateway_nif:error_reason() | nats_gateway_websocket:error_reason().

-type stop_reason() ::
    nats_gateway_host:close_reason()
    | error_reason()
    | client_closed
    | stale_connection
    | authentication_timeout
    | account_authentication_expired
    | idle_timeout
    | session_changed
    | settings_changed
    | permission_denied
    | maximum_connections_exceeded
    | maximum_account_connections_exceeded
    | too_many_logins
    | maximum_subscriptions_exceeded
    | invalid_client_protocol
    | no_responders_requires_headers.

%% Functions that return only a channel do not change what comes next.
-type result() :: {ok, iodata(), next(), channel()} | stop().

-type stop() :: {stop, stop_reason(), iodata(), channel()}.

%% The same within this module. Each exported function adds once what comes next.
-type outcome() :: {ok, iodata(), channel()} | stop().

%% What the channel can do next, and the time to call `handle_timeout/2' with `login', in milliseconds
%% of monotonic time.
-type next() :: {
    %% it can take input of the client
    ready
    %% it can do nothing until the host's completion has come, so the input should stay in the
    %% socket
    | blocked
    %% It goes on with `continue/1', once the output has been sent. Until then the input of the
    %% client and the events of the host wait.
    | behind,
    Until :: infinity | integer()
}.

-type description() :: #{
    peername := {inet:ip_address(), inet:port_number()},
    transport := tcp | ssl | ws | wss,
    user := binary(),
    account := binary(),
    %% facts of its JWT
    jwt | issuer_key | name_tag => binary(),
    tags => [binary()],
    %% fields of CONNECT
    name | lang | version => binary(),
    %% facts of its socket
    tls => nats_gateway_transport:tls()
}.

-type login_kind() :: explicit | implicit | again.

%% The channel waits for one of these. The operations that follow are in `todo'.
-record(login, {
    kind :: login_kind(),
    request :: nats_gateway_passwords:request(),
    %% the verdicts for a right and a wrong password
    right :: nats_gateway_login:verdict(),
    wrong :: nats_gateway_login:verdict()
}).
-record(connect, {kind :: login_kind()}).
-record(publish, {
    pubs :: [#pub{}],
    verdicts :: [nats_gateway_publishing:verdict()] | pass
}).
-record(subscribe, {key :: nats_gateway_host:key()}).
%% the answer topic of a request to a device
-record(device, {
    key :: nats_gateway_host:key(),
    pub :: #pub{},
    route :: nats_gateway_device_rules:route()
}).
-record(finish, {reason :: stop_reason()}).

-type waiting() ::
    none
    | #login{}
    | #connect{}
    | #publish{}
    | #subscribe{}
    | #device{}
    | subscribe_again
    | barrier
    %% a barrier before the first operation in `todo'
    | fence
    | ready
    | #finish{}.

-record(channel, {
    host :: module(),
    host_state :: term(),
    %% the key `connect' has the fields of all CONNECTs
    client :: nats_gateway_host:client(),
    options = #options{} :: #options{},
    decoder :: #decoder{},
    grant = #grant{} :: nats_gateway_admission:grant(),
    %% whether an INFO with another limit is to be sent; clients expect the first PONG before it
    info_due = false :: boolean(),
    %% undefined until the client has logged in
    session :: undefined | nats_gateway_host:session(),
    subscriptions = nats_gateway_subscriptions:new() ::
        nats_gateway_subscriptions:subscriptions(),
    views = nats_gateway_subject_views:new() :: nats_gateway_subject_views:views(),
    %% those of the subscriptions that the host does not have
    watched = nats_gateway_client_events:new() :: nats_gateway_client_events:watched(),
    waiting = none :: waiting(),
    %% whether the client has left, so that only its publishes still count
    gone = false :: boolean(),
    todo = [] :: [input()],
    output = nats_gateway_output:new() :: nats_gateway_output:output(),
    traffic :: nats_gateway_traffic:traffic(),
    devices = none :: none | nats_gateway_devices:devices(),
    %% whether the next call of the encoder is timed
    sample = false :: boolean()
}).

-opaque channel() :: #channel{}.

-define(PING, <<"PING\r\n">>).
-define(PONG, <<"PONG\r\n">>).

%% Requests to the key/value store, and its keys, where the settings have one.
-define(STORE_API(Name), <<"$JS.", Name/binary>>).
-define(STORE_KEY(Name), <<"$KV.", Name/binary>>).
-define(HAS_STORE(Channel), is_map(map_get(kv, map_get(config, Channel#channel.client)))).

%% An answer that has fewer bytes than this need not be counted.
-define(SMALL, 4096).

%% A request that the gateway itself answers.
-define(SYSTEM_REQUEST(Name), <<"$SYS.REQ.", Name/binary>>).

-spec prepare(module(), nats_gateway_host:client()) ->
    {ok, nats_gateway_host:client()} | {error, stop_reason()}.
prepare(Host, Client) ->
    case erlang:function_exported(Host, prepare, 1) of
        true -> Host:prepare(Client);
        false -> {ok, Client}
    end.

%% Returns the INFO line, which is sent at accept, before any byte of the client.
-spec init(module(), nats_gateway_host:client()) -> {ok, iodata(), next(), channel()}.
init(Host, Client = #{config := Config}) ->
    #{max_control_line := MaxControlLine, max_payload_size := MaxPayload, login := Login} = Config,
    #{enable_stats := EnableStats} = Config,
    Nonce = nats_gateway_login:nonce(Login),
    Channel = #channel{
        host = Host,
        client = Client#{nonce => Nonce},
        decoder = nats_gateway_subject_views:mappings(Config, #decoder{
            max_control_line = MaxControlLine, max_payload = MaxPayload, phase = phase(Config)
        }),
        traffic = nats_gateway_traffic:new(EnableStats andalso reports(Host)),
        devices = nats_gateway_devices:new(maps:get(devices, Config))
    },
    Extra = maps:from_list([{nonce, Nonce} || Nonce =/= undefined]),
    with_next({ok, server_info(Extra, Channel), set_decoder_limit(Channel)}).

%% Says what comes next.
-spec with_next(outcome()) -> result().
with_next({ok, Out, Channel = #channel{grant = Grant}}) ->
    {ok, Out, next(turn(Channel), nats_gateway_admission:deadline(Grant)), Channel};
with_next(Stop) ->
    Stop.

%% Most logins have no end, and these answers take no memory.
next(ready, infinity) -> {ready, infinity};
next(blocked, infinity) -> {blocked, infinity};
next(behind, infinity) -> {behind, infinity};
next(Turn, Until) -> {Turn, Until}.

turn(#channel{waiting = Waiting, output = Output}) ->
    case nats_gateway_output:is_behind(Output) of
        true -> behind;
        false when Waiting =:= none -> ready;
        false -> blocked
    end.

%% The phase of the decoder before the login.
phase(#{auth_required := true}) -> connect_only;
phase(#{auth_required := false}) -> open.

%% Gives the decoder the limit of this moment.
set_decoder_limit(Channel = #channel{decoder = Decoder}) ->
    Channel#channel{decoder = Decoder#decoder{max_payload = max_payload(Channel)}}.

%% The largest payload that the settings, the login and the host all allow.
max_payload(#channel{client = Client, session = Session, grant = #grant{max_payload = OfLogin}}) ->
    #{config := #{max_payload_size := OfServer}} = Client,
    OfHost =
        case Session of
            undefined -> maps:get(max_payload, Client, infinity);
            _ -> maps:get(max_payload, Session, infinity)
        end,
    min(OfServer, min(OfLogin, OfHost)).

%% Keeps the client's certificate. The name in it replaces CONNECT's user.
-spec identify(Peercert, {ok, Name :: binary()} | none, channel()) -> channel() when
    Peercert :: nats_gateway_certificate:peercert().
identify(Peercert, Name, Channel = #channel{client = Client}) ->
    Channel#channel{client = nats_gateway_connect:certified(Name, Client#{peercert => Peercert})}.

%% The options of the next call of the decoder.
-spec decoder(channel()) -> #decoder{}.
decoder(#channel{decoder = Decoder}) -> Decoder.

%% Returns the next slice of the output.
-spec continue(channel()) -> result().
continue(Channel = #channel{output = Output}) ->
    {Steps, NOutput} = nats_gateway_output:take(Output),
    with_next(go_on(steps(Steps, 0, [], Channel#channel{output = NOutput}))).

%% The operations that waited go on behind the last slice.
go_on({ok, Out, Channel = #channel{todo = Todo = [_ | _]}} = Outcome) ->
    case turn(Channel) of
        ready -> run(Todo, Out, Channel#channel{todo = []});
        _ -> Outcome
    end;
go_on(Outcome) ->
    Outcome.

%% About how many bytes the client is still to be sent. If the sids of a delivery have not been
%% looked up yet, its bytes count only once.
-spec unsent(channel()) -> non_neg_integer().
unsent(#channel{output = Output}) -> nats_gateway_output:bytes(Output).

%% Whether the client has logged in.
-spec is_connected(channel()) -> boolean().
is_connected(#channel{session = Session}) -> Session =/= undefined.

%% The client has ended the connection, and the host has not finished its earlier operations. Its
%% publishes still count, but no other operation does.
-spec leave(channel()) -> channel().
leave(Channel = #channel{waiting = none}) ->
    Channel;
leave(Channel = #channel{waiting = #login{}}) ->
    Channel;
leave(Channel = #channel{waiting = #connect{}}) ->
    Channel;
leave(Channel) ->
    Channel#channel{gone = true}.

-spec info(channel()) -> map().
info(Channel = #channel{client = Client, session = Session}) ->
    (stats(Channel))#{
        client => without_secrets(Client),
        session => Session,
        connected => is_connected(Channel),
        verbose => is_verbose(Channel)
    }.

without_secrets(Client = #{connect := Fields}) ->
    Shown = maps:without([config, cookies, nonce], Client),
    Known = Shown#{connect := nats_gateway_connect:without_secrets(Fields)},
    case Known of
        #{login := Login} -> Known#{login := maps:remove(jwt, Login)};
        #{} -> Known
    end.

is_verbose(#channel{options = #options{verbose = Verbose}}) -> Verbose.

-spec client_id(channel()) -> pos_integer().
client_id(#channel{client = #{client_id := ClientId}}) -> ClientId.

%% The facts about the client for the monitoring endpoints.
-spec description(channel()) -> description().
description(#channel{client = Client = #{connect := Fields}, grant = Grant}) ->
    #{peername := Peername, transport := Transport} = Client,
    #{user := User, account := Account} = nats_gateway_admission:user(Client, Grant),
    OfLogin = nats_gateway_admission:jwt_facts(Client),
    (maps:merge(OfLogin, maps:with([name, lang, version], Fields)))#{
        peername => Peername, transport => Transport, user => User, account => Account
    }.

-spec stats(channel()) -> #{atom() => non_neg_integer()}.
stats(#channel{subscriptions = Subs, traffic = Traffic}) ->
    Stats = nats_gateway_traffic:stats(Traffic),
    Stats#{subscriptions => nats_gateway_subscriptions:count(Subs)}.

%% The round trip time that was measured last, in nanoseconds.
-spec rtt(channel()) -> unknown | pos_integer().
rtt(#channel{traffic = Traffic}) -> nats_gateway_traffic:rtt(Traffic).

-spec account(channel()) -> binary().
account(#channel{client = Client}) -> nats_gateway_admission:account(Client).

-spec sample(channel()) -> channel().
sample(Channel) -> Channel#channel{sample = true}.

%% The number of messages sent. A message counts once for each sid that it goes to.
-spec sent(channel()) -> non_neg_integer().
sent(#channel{traffic = Traffic}) -> nats_gateway_traffic:sent(Traffic).

%% The same, but a message counts once.
-spec fanned_out(channel()) -> non_neg_integer().
fanned_out(#channel{traffic = Traffic}) -> nats_gateway_traffic:fanned_out(Traffic).

%% About how many bytes the binaries of the subscriptions take.
-spec held(channel()) -> non_neg_integer().
held(#channel{subscriptions = Subs}) -> nats_gateway_subscriptions:bytes(Subs).

-spec subscriptions(channel()) -> [nats_gateway_subscriptions:subscription()].
subscriptions(#channel{subscriptions = Subs}) -> nats_gateway_subscriptions:list(Subs).

%% Ends the connection with the line of this reason. The client has got INFO before.
-spec refuse(stop_reason(), channel()) -> stop().
refuse(Reason, Channel) -> stop(Reason, [], Channel).

%% An INFO with `ldm' for a client that takes an INFO at any time.
-spec lame_duck(channel()) -> iodata().
lame_duck(Channel) ->
    case takes_info(Channel) of
        true -> server_info(#{ldm => true}, Channel);
        false -> []
    end.

takes_info(Channel = #channel{options = #options{protocol = Protocol}}) ->
    Protocol =:= 1 andalso is_connected(Channel).

%% Gives a connected client other settings. They hold for its next login.
-spec configure(nats_gateway_config:config(), channel()) -> result().
configure(Config, Channel) -> with_next(configured(Config, Channel)).

configured(Config, Channel = #channel{session = undefined, waiting = none}) ->
    #channel{client = Client = #{config := Old}} = Channel,
    Demands = phase(Config) =:= connect_only andalso phase(Old) =:= open,
    case Demands orelse lacks_nonce(Client, Config) of
        true ->
            %% The INFO that this client got announced no login, or had no nonce. The client has to
            %% reconnect to read the new INFO.
            stop(settings_changed, [], Channel);
        false ->
            {Changes, NChannel = #channel{decoder = Decoder}} = reconfigured(Config, Channel),
            {ok, [], NChannel#channel{
                decoder = Decoder#decoder{phase = phase(Config)},
                info_due = NChannel#channel.info_due orelse Changes
            }}
    end;
configured(Config, Channel) ->
    {Changes, NChannel} = reconfigured(Config, Channel),
    %% Clients that take an INFO at any time are sent the new limit.
    case Changes andalso takes_info(NChannel) of
        true -> {ok, server_info(#{}, NChannel), NChannel};
        false -> {ok, [], NChannel}
    end.

lacks_nonce(#{nonce := undefined}, #{login := Login}) ->
    nats_gateway_login:nonce(Login) =/= undefined;
lacks_nonce(_, _) ->
    false.

%% Returns with the channel whether the largest payload is another one now.
reconfigured(Config = #{max_control_line := MaxControlLine, devices := OfDevices}, Channel) ->
    #channel{client = Client, decoder = Decoder = #decoder{max_payload = Announced}} = Channel,
    NChannel = set_decoder_limit(Channel#channel{
        client = Client#{config := Config},
        devices = nats_gateway_devices:configure(OfDevices, Channel#channel.devices),
        decoder = nats_gateway_subject_views:mappings(Config, Decoder#decoder{
            max_control_line = MaxControlLine
        })
    }),
    {NChannel#channel.decoder#decoder.max_payload =/= Announced, NChannel}.

%% `Messages' were still waiting for `handle_messages/2'.
-spec terminate(term(), Messages :: [term()], channel()) -> ok.
terminate(_, _, #channel{host_state = undefined}) ->
    ok;
terminate(Reason, Messages, #channel{host = Host, host_state = HostState}) ->
    Host:disconnect(
        Reason,
        case Messages =/= [] andalso erlang:function_exported(Host, undelivered, 2) of
            true -> Host:undelivered(Messages, HostState);
            false -> HostState
        end
    ).

%% -------------------------------------------------------------------------------------------
%% Input of the client

%% A caller that passes input only while the channel is `ready' never makes the list `todo' longer.
-spec handle_ops([input()], channel()) -> result().
handle_ops(Ops, Channel = #channel{traffic = Traffic}) ->
    ok = nats_gateway_traffic:count_operations(Ops, Traffic),
    with_next(take_in(Ops, Channel)).

take_in(Ops, Channel = #channel{todo = Todo}) ->
    case turn(Channel) of
        ready when Todo =:= [] -> run(Ops, [], next_segment(Channel));
        _ -> {ok, [], next_segment(Channel#channel{todo = Todo ++ Ops})}
    end.

next_segment(Channel = #channel{subscriptions = Subs}) ->
    Channel#channel{subscriptions = nats_gateway_subscriptions:next_segment(Subs)}.

run([], Out, Channel) ->
    {ok, Out, Channel};
run([{error, invalid_publish_subject} | _], Out, Channel) ->
    Invalid =
        case Channel of
            #channel{options = #options{pedantic = true}} ->
                err(nats_gateway_publishing:invalid_subject(), Channel);
            #channel{} ->
                []
        end,
    finish(unknown_protocol_operation, [Out | Invalid], Channel);
run([{error, Reason} | _], Out, Channel) ->
    finish(Reason, Out, Channel);
run([eof | _], Out, Channel) ->
    finish(client_closed, Out, Channel);
run([Connect = {connect, Fields} | Rest] = Ops, Out, Channel) ->
    case must_wait(Connect, Channel) of
        no -> connect(Fields, Rest, Out, Channel);
        Which -> fence(Which, Ops, Out, Channel)
    end;
run(Ops, Out, Channel = #channel{session = undefined}) ->
    %% A client that sends no CONNECT has the default options, and the host knows it like any other.
    login(implicit, Ops, Out, Channel);
run([#pub{subject = ?SYSTEM_REQUEST(Name), reply_to = ReplyTo} = Pub | Rest], Out, Channel) when
    is_binary(ReplyTo)
->
    system_request(Name, Pub, Rest, Out, Channel);
run([Op | Rest], Out, Channel = #channel{gone = true}) when
    not is_record(Op, pub)
->
    run(Rest, Out, Channel);
run([ping | Rest], Out, Channel = #channel{host = Host, host_state = HostState}) ->
    case Host:barrier(own, HostState) of
        {ok, NHostState} ->
            pong(Rest, Out, Channel#channel{host_state = NHostState});
        {wait, NHostState} ->
            wait(barrier, Rest, Out, Channel#channel{host_state = NHostState})
    end;
run([pong | Rest], Out, Channel = #channel{traffic = Traffic}) ->
    run(Rest, Out, Channel#channel{traffic = nats_gateway_traffic:ponged(Traffic)});
run(Ops, Out, Channel = #channel{host = Host, host_state = HostState}) ->
    case Host:ready(HostState) of
        ok -> take(Ops, Out, Channel);
        {wait, NHostState} -> wait(ready, Ops, Out, Channel#channel{host_state = NHostState})
    end.

take([#pub{subject = ?STORE_API(_)} = Pub | Rest], Out, Channel) when ?HAS_STORE(Channel) ->
    own_request(store, Pub, Rest, Out, Channel);
take([#pub{subject = ?STORE_KEY(_)} = Pub | Rest], Out, Channel) when ?HAS_STORE(Channel) ->
    own_request(store, Pub, Rest, Out, Channel);
take([#pub{} | _] = Ops, Out, Channel = #channel{devices = none}) ->
    {Pubs, Rest} = take_publishes(Ops, []),
    publish(Pubs, Rest, Out, Channel);
take([#pub{} | _] = Ops, Out, Channel = #channel{devices = Devices}) ->
    case nats_gateway_devices:take(Ops, mountpoint(Channel), Devices) of
        {request, Pub, Route, Rest} -> ask_device(Pub, Route, Rest, Out, Channel);
        {Pubs, Rest} -> publish(Pubs, Rest, Out, Channel)
    end;
take([Op | Rest] = Ops, Out, Channel) ->
    case must_wait(Op, Channel) of
        no -> change(Op, Rest, Out, Channel);
        Which -> fence(Which, Ops, Out, Channel)
    end.

must_wait(Op, Channel = #channel{subscriptions = Subs}) ->
    nats_gateway_subscriptions:must_wait(Op, is_verbose(Channel), Subs).

change(#sub{} = Sub, Rest, Out, Channel) ->
    subscribe(Sub, Rest, Out, Channel);
change(#unsub{sid = Sid, max = Max}, Rest, Out, Channel = #channel{subscriptions = Subs}) ->
    {Unused, NSubs} = nats_gateway_subscriptions:limit(Sid, Max, Subs),
    NChannel = unsubscribe(Unused, Channel#channel{subscriptions = NSubs}),
    run(Rest, acknowledge(Out, NChannel), NChannel).

fence(Which, Ops, Out, Channel = #channel{host = Host, host_state = HostState}) ->
    case Host:barrier(Which, HostState) of
        {ok, NHostState} -> run(Ops, Out, fenced(Channel#channel{host_state = NHostState}));
        {wait, NHostState} -> wait(fence, Ops, Out, Channel#channel{host_state = NHostState})
    end.

fenced(Channel = #channel{subscriptions = Subs}) ->
    Channel#channel{subscriptions = nats_gateway_subscriptions:fenced(Subs)}.

pong(Rest, Out, Channel = #channel{subscriptions = Subs}) ->
    count({sent, pong}, Channel),
    Flushed = Channel#channel{subscriptions = nats_gateway_subscriptions:flushed(Subs)},
    case Channel of
        #channel{info_due = false} ->
            run(Rest, [Out | ?PONG], Flushed);
        #channel{} ->
            Info = server_info(#{}, Channel),
            run(Rest, [Out, ?PONG | Info], Flushed#channel{info_due = false})
    end.

%% Before the end, everything that came earlier is processed, and its output is written.
finish(Reason, Out, Channel = #channel{session = undefined}) ->
    stop(Reason, Out, Channel);
finish(Reason, Out, Channel = #channel{host = Host, host_state = HostState}) ->
    case Host:barrier(own, HostState) of
        {ok, NHostState} ->
            stop(Reason, Out, Channel#channel{host_state = NHostState});
        {wait, NHostState} ->
            wait(#finish{reason = Reason}, [], Out, Channel#channel{host_state = NHostState})
    end.

wait(Waiting, Rest, Out, Channel) ->
    {ok, Out, Channel#channel{waiting = Waiting, todo = Rest}}.

%% The host's completion has come. The messages that were held back are sent, and then the
%% operations go on.
resume(Out, Channel = #channel{output = Output}) ->
    case nats_gateway_output:holds(Output) of
        false -> resume(fun run/3, Out, Channel);
        true -> release(resume, Out, Channel#channel{waiting = none})
    end.

resume(Continue, Out, Channel = #channel{todo = Todo}) ->
    Continue(Todo, Out, Channel#channel{waiting = none, todo = []}).

%% Sends the messages that were held back, and then does the step.
release(Step, Out, Channel = #channel{output = Output}) ->
    {Frames, NOutput} = nats_gateway_output:release(Output),
    {sent, 0, [Frames, Step], Out, Channel#channel{output = NOutput}}.

acknowledge(Out, #channel{options = #options{verbose = true}, traffic = Traffic}) ->
    [Out | nats_gateway_traffic:ok(true, Traffic)];
acknowledge(Out, _) ->
    Out.

stop(Reason, Out, Channel) ->
    {stop, Reason, [Out | err(nats_gateway_ending:error_line(Reason), Channel)], Channel#channel{
        output = nats_gateway_output:new(), todo = []
    }}.

%% Drops the output that the client is behind with. Messages that were held back for a +OK are still
%% sent.
stop_at_once(Reason, Out, Channel = #channel{output = Output}) ->
    steps([{close, Reason}], 0, Out, Channel#channel{output = nats_gateway_output:drop(Output)}).

%% -------------------------------------------------------------------------------------------
%% CONNECT

connect(Fields, Rest, Out, Channel = #channel{client = Client, traffic = Traffic}) ->
    case nats_gateway_connect:merge(Fields, Client) of
        {ok, NClient} ->
            NChannel = Channel#channel{
                client = NClient, traffic = nats_gateway_traffic:connected(Traffic)
            },
            case Channel of
                #channel{session = undefined} ->
                    login(explicit, Rest, Out, NChannel);
                #channel{session = Session} ->
                    case nats_gateway_connect:has_same_credentials(Client, NClient) of
                        true -> logged_in(explicit, Session, Rest, Out, NChannel);
                        false -> login_again(Rest, Out, NChannel)
                    end
            end;
        {error, Reason} ->
            stop(Reason, Out, Channel)
    end.

login_again(Rest, Out, Channel = #channel{host = Host, host_state = HostState, client = Client}) ->
    ok = Host:disconnect(login_again, HostState),
    ok = nats_gateway_admission:leave(Client),
    login(again, Rest, Out, Channel#channel{
        host_state = undefined,
        watched = nats_gateway_client_events:stop(Channel#channel.watched),
        subscriptions = nats_gateway_subscriptions:begin_anew(Channel#channel.subscriptions),
        devices = nats_gateway_devices:begin_anew(Channel#channel.devices)
    }).

%% The gateway's own login comes before that of the broker. The broker gets its result.
login(Kind, Rest, Out, Channel = #channel{client = Client}) ->
    case nats_gateway_admission:authenticate(Client) of
        {verify, Request, IfRight, IfWrong} ->
            Waiting = #login{kind = Kind, request = Request, right = IfRight, wrong = IfWrong},
            wait(Waiting, Rest, Out, Channel);
        Verdict ->
            judged_login(Verdict, Kind, Rest, Out, Channel)
    end.

judged_login(Verdict, Kind, Rest, Out, Channel = #channel{client = Client}) ->
    case nats_gateway_admission:judge(Verdict, Client) of
        {ok, NClient, Grant} ->
            connect_host(Kind, Rest, Out, Channel#channel{client = NClient, grant = Grant});
        {error, Reason} ->
            stop(Reason, Out, Channel)
    end.

%% Whether the client's password is being compared.
-spec is_verifying(channel()) -> boolean().
is_verifying(#channel{waiting = #login{}}) -> true;
is_verifying(_) -> false.

verified(Message, Channel = #channel{waiting = Waiting}) ->
    #login{request = Request, right = IfRight, wrong = IfWrong} = Waiting,
    case nats_gateway_passwords:result(Message, Request) of
        right -> events([{judged, IfRight}], [], Channel);
        wrong -> events([{judged, IfWrong}], [], Channel);
        busy -> events([{judged, busy}], [], Channel);
        no_result -> {ok, [], Channel}
    end.

connect_host(Kind, Rest, Out, Channel = #channel{host = Host, client = Client}) ->
    case Host:connect(Client) of
        {ok, Session, HostState} ->
            logged_in(Kind, Session, Rest, Out, Channel#channel{host_state = HostState});
        {wait, HostState} ->
            wait(#connect{kind = Kind}, Rest, Out, Channel#channel{host_state = HostState});
        {error, Reason} ->
            stop(Reason, Out, Channel)
    end.

logged_in(_, #{mountpoint := New}, _, Out, Channel = #channel{session = #{mountpoint := Old}}) when
    New =/= Old
->
    %% The client has to begin again, because its subscriptions are under the mountpoint of the old
    %% login.
    stop(session_changed, Out, Channel);
logged_in(Kind, Session = #{mountpoint := Mountpoint}, Rest, Out, Old) ->
    #channel{client = Client = #{connect := Fields}, decoder = Decoder, grant = Grant} = Old,
    #decoder{max_payload = Announced} = Decoder,
    Channel = Old#channel{
        session = Session,
        grant = nats_gateway_admission:until_session_ends(Session, Client, Grant)
    },
    ok = nats_gateway_client_events:connected(fun() -> event_facts(Channel) end),
    case nats_gateway_connect:options(Fields) of
        {ok, Options = #options{headers = Headers, protocol = Protocol}} ->
            NChannel = set_decoder_limit(Channel#channel{
                options = Options,
                decoder = Decoder#decoder{phase = open, headers = Headers, mountpoint = Mountpoint}
            }),
            IsFirst = not is_connected(Old),
            Changes = NChannel#channel.decoder#decoder.max_payload =/= Announced,
            Due = Old#channel.info_due orelse (IsFirst andalso Changes),
            InfoDue = Protocol =:= 1 andalso Due,
            after_login(Kind, Rest, Out, Old, NChannel#channel{info_due = InfoDue});
        {error, Reason} ->
            stop(Reason, Out, Channel)
    end.

%% Goes on after a login.
after_login(implicit, Ops, Out, _, Channel = #channel{session = #{mountpoint := Mountpoint}}) ->
    within_limit(fun(Ok) -> run(mounted(Ops, Mountpoint), Out, Ok) end, Out, Channel);
after_login(Kind, Rest, Out, #channel{options = #options{echo = Echo}}, Channel) ->
    Acknowledged = acknowledge(Out, Channel),
    case Channel of
        #channel{options = #options{echo = Echo}} when Kind =/= again ->
            within_limit(fun(Ok) -> run(Rest, Acknowledged, Ok) end, Acknowledged, Channel);
        #channel{} ->
            subscribe_again(Rest, Acknowledged, Channel)
    end.

%% Adds the mountpoint to operations that were decoded before the login. No such operations follow a
%% CONNECT.
mounted(Ops, <<>>) -> Ops;
mounted(Ops, Mountpoint) -> [mount(Op, Mountpoint) || Op <- Ops].

mount(Pub = #pub{subject = Subject, reply_to = ReplyTo, reply_topic = ReplyTopic}, Mountpoint) ->
    NReplyTopic =
        case ReplyTopic of
            undefined -> undefined;
            invalid -> invalid;
            _ -> nats_gateway_nif:topic(ReplyTo, Mountpoint)
        end,
    Topic = nats_gateway_nif:topic(Subject, Mountpoint),
    Pub#pub{topic = Topic, reply_topic = NReplyTopic};
mount(Sub = #sub{}, Mountpoint) ->
    nats_gateway_subject_views:mount(Sub, Mountpoint);
mount(Op, _) ->
    Op.

%% The keys are subscribed again after another login, or with another no-local option.
subscribe_again(Rest, Out, Channel = #channel{gone = true}) ->
    run(Rest, Out, Channel);
subscribe_again(Rest, Out, Channel) ->
    {Denied, NChannel = #channel{subscriptions = Subs}} = permit_again(Channel),
    NOut = [Out | Denied],
    Keys = nats_gateway_subscriptions:keys(Subs),
    within_limit(fun(Ok) -> subscribe_keys(Keys, Rest, NOut, Ok) end, NOut, NChannel).

within_limit(GoOn, Out, Channel = #channel{subscriptions = Subs, client = Client}) ->
    Count = nats_gateway_subscriptions:count(Subs),
    case nats_gateway_admission:has_room(Count, max_subscriptions(Channel), Client) of
        true -> GoOn(Channel);
        false -> stop(maximum_subscriptions_exceeded, Out, Channel)
    end.

%% `infinity' is an atom, and atoms are greater than numbers.
max_subscriptions(#channel{client = Client, grant = #grant{max_subscriptions = OfLogin}}) ->
    #{config := #{max_subscriptions := OfServer}} = Client,
    min(OfServer, OfLogin).

%% Removes the subscriptions that the new login does not permit.
permit_again(Channel = #channel{grant = #grant{permissions = none}}) ->
    {[], Channel};
permit_again(Channel = #channel{subscriptions = Subs, views = Views}) ->
    lists:foldl(
        fun(Sub = #{sid := Sid, subject := Subject, queue_group := QueueGroup}, {Denied, Acc}) ->
            Mapped = nats_gateway_subject_views:permitted_as(Sid, Sub, mountpoint(Channel), Views),
            case permit_subscribe(Mapped, QueueGroup, Acc) of
                {allow, NAcc} ->
                    {Denied, NAcc};
                {deny, NAcc = #channel{subscriptions = AccSubs}} ->
                    %% The broker has not been asked for this key under the new login.
                    NSubs = nats_gateway_subscriptions:remove(Sid, AccSubs),
                    Refused = nats_gateway_subscribing:refused(denied, Subject, QueueGroup),
                    {[Denied | err(Refused, NAcc)], NAcc#channel{subscriptions = NSubs}}
            end
        end,
        {[], Channel},
        nats_gateway_subscriptions:list(Subs)
    ).

subscribe_keys([], Rest, Out, Channel) ->
    run(Rest, Out, Channel);
subscribe_keys(AllKeys, Rest, Out, Old) ->
    {Watched, Keys} = lists:partition(fun(Key) -> may_watch(Key, Old) end, AllKeys),
    Channel = #channel{host = Host, host_state = HostState} = lists:foldl(fun watch/2, Old, Watched),
    case Host:subscribe_again(Keys, subscribe_options(Channel), HostState) of
        {ok, Refusals, NHostState} ->
            {Refused, NChannel} = reject_all(Refusals, Channel#channel{host_state = NHostState}),
            run(Rest, [Out | Refused], NChannel);
        {wait, NHostState} ->
            wait(subscribe_again, Rest, Out, Channel#channel{host_state = NHostState});
        {stop, Reason, NHostState} ->
            stop(Reason, Out, Channel#channel{host_state = NHostState})
    end.

%% -------------------------------------------------------------------------------------------
%% PUB and HPUB

take_publishes([#pub{subject = <<"$", _/binary>>} = Pub | Rest] = Ops, Acc = [_ | _]) ->
    case nats_gateway_publishing:may_be_answered_here(Pub) of
        true -> {lists:reverse(Acc), Ops};
        false -> take_publishes(Rest, [Pub | Acc])
    end;
take_publishes([#pub{} = Pub | Rest], Acc) -> take_publishes(Rest, [Pub | Acc]);
take_publishes(Rest, Acc) -> {lists:reverse(Acc), Rest}.

publish(Pubs, Rest, Out, Channel = #channel{traffic = Traffic}) ->
    NChannel = Channel#channel{traffic = nats_gateway_traffic:received(length(Pubs), Traffic)},
    case nats_gateway_publishing:judge(Pubs, permissions(Channel)) of
        pass ->
            publish(Pubs, Pubs, pass, Rest, Out, NChannel);
        {Verdicts, Permissions} ->
            judged(Pubs, Verdicts, Rest, Out, set_permissions(Permissions, NChannel))
    end.

permissions(#channel{grant = #grant{permissions = Permissions}}) -> Permissions.

set_permissions(none, Channel) ->
    Channel;
set_permissions(Permissions, Channel = #channel{grant = Grant}) ->
    Channel#channel{grant = Grant#grant{permissions = Permissions}}.

judged(Pubs, Verdicts, Rest, Out, Channel = #channel{traffic = Traffic}) ->
    Passed = [Pub || {Pub, pass} <- lists:zip(Pubs, Verdicts)],
    Invalid = length([Pub || Pub = #pub{topic = invalid} <- Passed]),
    NTraffic = nats_gateway_traffic:unroutable(Invalid, Traffic),
    publish(Pubs, Passed, Verdicts, Rest, Out, Channel#channel{traffic = NTraffic}).

publish(Pubs, [], Verdicts, Rest, Out, Channel) ->
    run(Rest, [Out | answers(Pubs, Verdicts, [], Channel)], Channel);
publish(Pubs, Passed, Verdicts, Rest, Out, Channel) ->
    #channel{host = Host, host_state = HostState, options = Asked, subscriptions = Subs} = Channel,
    #options{verbose = Verbose, no_responders = NoResponders} = Asked,
    Options = #{confirm => Verbose, no_responders => NoResponders},
    Published = Channel#channel{subscriptions = nats_gateway_subscriptions:published(Subs)},
    case Host:publish(Passed, Options, HostState) of
        {ok, Rejections, NHostState} ->
            NChannel = unanswerable(Pubs, Rejections, Published#channel{host_state = NHostState}),
            run(Rest, [Out | answers(Pubs, Verdicts, Rejections, NChannel)], NChannel);
        {wait, NHostState} ->
            NChannel = Published#channel{host_state = NHostState},
            wait(#publish{pubs = Pubs, verdicts = Verdicts}, Rest, Out, NChannel);
        {stop, Reason, NHostState} ->
            stop(Reason, Out, Channel#channel{host_state = NHostState})
    end.

%% A request to a device is a batch of its own.
unanswerable([#pub{reply_topic = ReplyTopic}], [_], Channel = #channel{devices = Devices}) ->
    Channel#channel{devices = nats_gateway_devices:cancel(ReplyTopic, Devices)};
unanswerable(_, _, Channel) ->
    Channel.

%% The answers to a batch of publishes, in its order.
answers(_, pass, [], #channel{options = #options{verbose = false, pedantic = false}}) ->
    [];
answers(Pubs, Verdicts, Rejections, Channel) ->
    nats_gateway_publishing:answers(Pubs, Verdicts, Rejections, answering(Channel)).

answering(Channel = #channel{options = Options}) ->
    #answering{
        options = Options,
        mountpoint = mountpoint(Channel),
        subscriptions = Channel#channel.subscriptions,
        traffic = Channel#channel.traffic
    }.

%% -------------------------------------------------------------------------------------------
%% Requests that the gateway itself answers

system_request(Name, Pub, Rest, Out, Channel = #channel{client = Client, session = Session}) ->
    case nats_gateway_requests:of_system(Name, Client, Session) of
        none -> publish([Pub], Rest, Out, Channel);
        Request -> own_request(Request, Pub, Rest, Out, Channel)
    end.

own_request(Request, Pub, Rest, Out, Old) ->
    {Verdict, Deliveries, Channel} =
        case judge_request(Pub, Old) of
            {pass, Judged} -> ask(Request, Pub, Judged);
            {Denied, Judged} -> {Denied, [], Judged}
        end,
    NOut = [Out | answers([Pub], [Verdict], [], Channel)],
    case Deliveries of
        [] ->
            run(Rest, NOut, Channel);
        _ ->
            %% Many sids may get the answer, and one segment may hold many such requests, so only
            %% one answer is written at once.
            Steps = [{deliver, Deliveries}, resume],
            steps(Steps, ?SLICE - ?SMALL, NOut, Channel#channel{todo = Rest})
    end.

ask(user_info, Pub, Channel) ->
    #channel{client = Client, grant = Grant, subscriptions = Subs} = Channel,
    {pass, nats_gateway_requests:user_info(Pub, Client, Grant, Subs), Channel};
ask({server, Name}, Pub, Channel = #channel{host = Host, client = Client, grant = Grant}) ->
    #{user := User} = nats_gateway_admission:user(Client, Grant),
    Asked = #{name => Name, max => max_payload(Channel), by => User},
    {nats_gateway_requests:ask_server(Host, Pub, Asked), [], Channel};
ask(store, Pub, Channel = #channel{host = Host, host_state = HostState, client = Client}) ->
    {Verdict, NHostState} = nats_gateway_requests:ask_store(Host, Pub, Client, HostState),
    {Verdict, [], Channel#channel{host_state = NHostState}}.

judge_request(Pub, Channel = #channel{traffic = Traffic}) ->
    {Verdict, Permissions} = nats_gateway_publishing:judge_request(Pub, permissions(Channel)),
    Counted = Channel#channel{traffic = nats_gateway_traffic:received(1, Traffic)},
    {Verdict, set_permissions(Permissions, Counted)}.

%% To a request that was given to the host's `ask_server/1' or `ask_store/3'.
-spec answer(ReplyTopic :: binary(), nats_gateway_nif:headers(), Payload :: binary(), channel()) ->
    result().
answer(ReplyTopic, Headers, Payload, Channel = #channel{subscriptions = Subs}) ->
    own_deliveries(nats_gateway_requests:answer(ReplyTopic, Headers, Payload, Subs), Channel).

%% Messages for a subscription of the client that come neither from the broker nor as an answer.
-spec feed(Topic :: binary(), [nats_gateway_requests:feed()], channel()) ->
    {yes | behind | no, result()}.
feed(Topic, Feeds, Channel = #channel{subscriptions = Subs}) ->
    case nats_gateway_requests:feed(Topic, Feeds, Subs) of
        {ok, Deliveries} ->
            Result = own_deliveries(Deliveries, Channel),
            {is_taken(Result), Result};
        none ->
            {no, own_deliveries([], Channel)}
    end.

is_taken({ok, _, {behind, _}, _}) -> behind;
is_taken({ok, _, _, _}) -> yes;
is_taken({stop, _, _, _}) -> no.

%% An event of nats_gateway_client_events, if the client may still get it.
-spec client_event(Subject :: binary(), Payload :: binary(), channel()) -> result().
client_event(Subject, Payload, Channel = #channel{client = Client, session = Session, watched = Watched}) ->
    Deliveries = nats_gateway_requests:client_event(Subject, Payload, mountpoint(Channel), Watched),
    case Deliveries =/= [] andalso nats_gateway_admission:has_system_access(Client, Session) of
        true -> own_deliveries(Deliveries, Channel);
        false -> own_deliveries([], Channel)
    end.

own_deliveries(Deliveries, Channel) ->
    with_next(events([{deliver, Deliveries} || Deliveries =/= []], [], Channel)).

%% What an event about this client is made of.
-spec event_facts(channel()) -> nats_gateway_client_events:facts().
event_facts(Channel = #channel{client = #{config := Config, sockname := {Host, _}}}) ->
    #{
        client_id => client_id(Channel),
        config => Config,
        host => Host,
        description => description(Channel)
    }.

%% -------------------------------------------------------------------------------------------
%% Requests to devices that answer on a topic of their own

%% The login's permissions are about the subject of the request, and the broker's about both topics.
ask_device(Pub, Route, Rest, Out, Old) ->
    case judge_request(Pub, Old) of
        {pass, Channel} ->
            ask_permitted(Pub, Route, Rest, Out, Channel);
        {Denied, Channel} ->
            run(Rest, [Out | answers([Pub], [Denied], [], Channel)], Channel)
    end.

ask_permitted(Pub, Route, Rest, Out, Channel = #channel{devices = Devices}) ->
    case nats_gateway_devices:request(Pub, Route, now_ms(), Devices) of
        {publish, Command, NDevices} ->
            publish([Pub], [Command], [pass], Rest, Out, Channel#channel{devices = NDevices});
        {subscribe, Key, Unused, NDevices} ->
            NChannel = unsubscribe_from_devices(Unused, Channel#channel{devices = NDevices}),
            subscribe_to_device(#device{key = Key, pub = Pub, route = Route}, Rest, Out, NChannel);
        no_responders ->
            run(Rest, [Out | answers([Pub], [no_responders], [], Channel)], Channel)
    end.

now_ms() -> erlang:monotonic_time(millisecond).

%% The command is published when the broker has confirmed the subscription, so that no answer is lost.
%% A retained message is no answer.
subscribe_to_device(Device = #device{key = Key, pub = Pub}, Rest, Out, Channel) ->
    #channel{host = Host, host_state = HostState, subscriptions = Subs} = Channel,
    Options = #{confirm => true, no_local => false, retained => false},
    case nats_gateway_subscriptions:key_state(Key, Subs) =/= known andalso
        Host:subscribe(Key, Options, HostState)
    of
        false ->
            subscribed_to_device(ok, Device, Rest, Out, Channel);
        {wait, NHostState} ->
            wait(Device, Rest, Out, Channel#channel{host_state = NHostState});
        {stop, permission_denied, NHostState} ->
            Denied = answers([Pub], [denied], [], Channel),
            stop(permission_denied, [Out | Denied], Channel#channel{host_state = NHostState});
        {stop, Reason, NHostState} ->
            stop(Reason, Out, Channel#channel{host_state = NHostState});
        {Answer, NHostState} ->
            subscribed_to_device(Answer, Device, Rest, Out, Channel#channel{host_state = NHostState})
    end.

subscribed_to_device(ok, Device, Rest, Out, Channel = #channel{devices = Devices}) ->
    #device{key = Key, pub = Pub, route = Route} = Device,
    {Ms, NDevices} = nats_gateway_devices:subscribed(Key, now_ms(), Devices),
    ok = start_devices_timer(Ms),
    ask_permitted(Pub, Route, Rest, Out, Channel#channel{devices = NDevices});
subscribed_to_device(_, #device{pub = Pub}, Rest, Out, Channel) ->
    run(Rest, [Out | answers([Pub], [denied], [], Channel)], Channel).

%% The connection passes the message to `handle_timeout/2'.
start_devices_timer(none) ->
    ok;
start_devices_timer(Ms) ->
    _ = erlang:send_after(Ms, self(), unused_devices),
    ok.

%% The client may have subscribed to the topic itself.
unsubscribe_from_devices(Keys, Channel = #channel{subscriptions = Subs}) ->
    Unknown = [Key || Key <- Keys, nats_gateway_subscriptions:key_state(Key, Subs) =:= unknown],
    tell_unsubscribed(Unknown, Channel).

%% -------------------------------------------------------------------------------------------
%% SUB and UNSUB

%% The login's permission is what nats-server checks first.
subscribe(Sub = #sub{subject = Subject, queue_group = QueueGroup, sid = Sid}, Rest, Out, Old) ->
    Mapped = nats_gateway_subject_views:permitted_as(Sub, mountpoint(Old)),
    {Permission, Channel = #channel{subscriptions = Subs}} = permit_subscribe(Mapped, QueueGroup, Old),
    Verdict =
        case Permission of
            allow -> nats_gateway_subscribing:judge(Sub, subscription_limits(Channel), Subs);
            deny -> denied
        end,
    case Verdict of
        ok ->
            Key = {Sub#sub.share_name, Sub#sub.filter},
            {Known, NSubs} = nats_gateway_subscriptions:add(Sid, Subject, QueueGroup, Key, Subs),
            Views = nats_gateway_subject_views:added(Sub, NSubs, Channel#channel.views),
            NChannel = Channel#channel{subscriptions = NSubs, views = Views},
            case Known of
                known_key -> run(Rest, acknowledge(Out, NChannel), NChannel);
                new_key -> subscribe_key(Key, Sid, Rest, Out, NChannel)
            end;
        in_use ->
            run(Rest, acknowledge(Out, Channel), Channel);
        Refusal ->
            Refused = nats_gateway_subscribing:refused(Refusal, Subject, QueueGroup),
            run(Rest, [Out | err(Refused, Channel)], Channel)
    end.

subscription_limits(Channel = #channel{client = #{config := #{max_sub_tokens := MaxTokens}}}) ->
    #{max_subscriptions => max_subscriptions(Channel), max_sub_tokens => MaxTokens}.

permit_subscribe(Subject, QueueGroup, Channel) ->
    case permissions(Channel) of
        none ->
            {allow, Channel};
        Permissions ->
            {Permission, NPermissions} =
                nats_gateway_permissions:subscribe(Subject, QueueGroup, Permissions),
            {Permission, set_permissions(NPermissions, Channel)}
    end.

subscribe_key(Key, Sid, Rest, Out, Channel) ->
    case may_watch(Key, Channel) of
        true -> run(Rest, acknowledge(Out, Channel), watch(Key, Channel));
        false -> subscribe_host(Key, Sid, Rest, Out, Channel)
    end.

%% Whether the gateway has what this key is for, and the client may get it. Then the host is not
%% subscribed.
may_watch(Key, Channel = #channel{client = Client, session = Session}) ->
    nats_gateway_client_events:is_watchable(Key, mountpoint(Channel)) andalso
        nats_gateway_admission:has_system_access(Client, Session).

watch(Key, Channel = #channel{watched = Watched}) ->
    Channel#channel{watched = nats_gateway_client_events:watch(Key, Watched)}.

subscribe_host(Key, Sid, Rest, Out, Channel) ->
    #channel{host = Host, host_state = HostState} = Channel,
    Options = subscribe_options(Channel),
    case Host:subscribe(Key, Options#{sid => Sid}, HostState) of
        {ok, NHostState} ->
            NChannel = Channel#channel{host_state = NHostState},
            run(Rest, acknowledge(Out, NChannel), NChannel);
        {wait, NHostState} ->
            wait(#subscribe{key = Key}, Rest, Out, Channel#channel{host_state = NHostState});
        {stop, permission_denied, NHostState} ->
            {Denied, NChannel} = reject(Key, denied, Channel#channel{host_state = NHostState}),
            stop(permission_denied, [Out | Denied], NChannel);
        {stop, Reason, NHostState} ->
            stop(Reason, Out, Channel#channel{host_state = NHostState});
        {Refusal, NHostState} ->
            {Refused, NChannel} = reject(Key, Refusal, Channel#channel{host_state = NHostState}),
            run(Rest, [Out | Refused], NChannel)
    end.

subscribe_options(#channel{options = #options{verbose = Verbose, echo = Echo}}) ->
    #{confirm => Verbose, no_local => not Echo}.

%% Only refusals of the client's own subscriptions are answered. It does not know the others.
reject(Key, Refusal, Channel = #channel{subscriptions = Subs, devices = Devices}) ->
    {Rejected, NSubs} = nats_gateway_subscriptions:reject(Key, Subs),
    Refused = [
        err(nats_gateway_subscribing:refused(Refusal, Subject, QueueGroup), Channel)
     || #{subject := Subject, queue_group := QueueGroup} <- Rejected
    ],
    NDevices = nats_gateway_devices:lost(Key, Devices),
    {Refused, Channel#channel{subscriptions = NSubs, devices = NDevices}}.

reject_all(Refusals, Channel) ->
    lists:mapfoldl(fun({Key, Refusal}, Acc) -> reject(Key, Refusal, Acc) end, Channel, Refusals).

unsubscribe([], Channel) ->
    Channel;
unsubscribe(Keys, Channel = #channel{watched = Watched}) ->
    {Own, OfHost} = lists:partition(
        fun(Key) -> nats_gateway_client_events:is_watched(Key, Watched) end, Keys
    ),
    unsubscribe_at_host(OfHost, lists:foldl(fun unwatch/2, Channel, Own)).

unwatch(Key, Channel = #channel{watched = Watched, subscriptions = Subs}) ->
    Channel#channel{
        watched = nats_gateway_client_events:unwatch(Key, Watched),
        subscriptions = nats_gateway_subscriptions:unsubscribed(Key, Subs)
    }.

unsubscribe_at_host(Keys, Channel = #channel{devices = none}) ->
    tell_unsubscribed(Keys, Channel);
unsubscribe_at_host(Keys, Channel = #channel{devices = Devices, subscriptions = Subs}) ->
    %% The answers of devices still come for some keys.
    {Kept, Unused} = lists:partition(
        fun(Key) -> nats_gateway_devices:is_subscribed(Key, Devices) end, Keys
    ),
    NSubs = lists:foldl(fun nats_gateway_subscriptions:unsubscribed/2, Subs, Kept),
    tell_unsubscribed(Unused, Channel#channel{subscriptions = NSubs}).

tell_unsubscribed(Keys, Channel = #channel{host = Host, host_state = HostState}) ->
    Channel#channel{host_state = lists:foldl(fun Host:unsubscribe/2, HostState, Keys)}.

%% -------------------------------------------------------------------------------------------
%% Events of the host

-spec handle_info(term(), channel()) -> result().
handle_info(Message, Channel) -> with_next(informed(Message, Channel)).

informed(Message, Channel = #channel{waiting = #login{}}) ->
    verified(Message, Channel);
informed(_, Channel = #channel{host_state = undefined}) ->
    {ok, [], Channel};
informed(Message, Channel = #channel{host = Host, host_state = HostState}) ->
    case Host:handle_info(Message, HostState) of
        ignore -> {ok, [], Channel};
        {Events, NHostState} -> events(Events, [], Channel#channel{host_state = NHostState})
    end.

%% Whether the host takes messages together.
-spec collects(module()) -> boolean().
collects(Host) -> erlang:function_exported(Host, handle_messages, 2).

-spec handle_messages([term()], channel()) -> result().
handle_messages(Messages, Channel) -> with_next(collected(Messages, Channel)).

collected([Message | Messages], Channel = #channel{waiting = #login{}}) ->
    case verified(Message, Channel) of
        %% There is no host yet, so the others can only be for the login, too.
        {ok, [], Channel} -> collected(Messages, Channel);
        Verified -> Verified
    end;
collected(_, Channel = #channel{host_state = undefined}) ->
    {ok, [], Channel};
collected(Messages, Channel = #channel{host = Host, host_state = HostState}) ->
    {Events, NHostState} = Host:handle_messages(Messages, HostState),
    events(Events, [], Channel#channel{host_state = NHostState}).

%% Passes a request of another process to the host of this client. The reply is `ignored' if the
%% host does not know the request.
-spec handle_call(term(), channel()) -> {Reply :: term(), result()}.
handle_call(Request, Channel = #channel{host = Host, host_state = HostState}) when
    HostState =/= undefined
->
    case erlang:function_exported(Host, handle_call, 3) of
        true ->
            {Reply, Events, NHostState} =
                Host:handle_call(Request, answers_for_host(Channel), HostState),
            {Reply, with_next(events(Events, [], Channel#channel{host_state = NHostState}))};
        false ->
            handle_own_call(Request, Channel)
    end;
handle_call(Request, Channel) ->
    handle_own_call(Request, Channel).

%% Of a client without a host, or whose host knows no calls.
handle_own_call(kick, Channel) -> {ok, with_next(stop_at_once(kicked, [], Channel))};
handle_own_call(_, Channel) -> {ignored, with_next({ok, [], Channel})}.

%% The questions that the host may ask meanwhile.
answers_for_host(Channel = #channel{subscriptions = Subs}) ->
    #{
        may_subscribe => fun({Share, Filter}) ->
            Subject = nats_gateway_subscribing:subject(Filter, mountpoint(Channel)),
            {Permission, _} = permit_subscribe(Subject, Share, Channel),
            Permission =:= allow
        end,
        sids => fun(Key) -> nats_gateway_subscriptions:sids(Key, Subs) end
    }.

-spec reports(module()) -> boolean().
reports(Host) -> erlang:function_exported(Host, report, 2).

-spec report(#{atom() => integer()}, channel()) -> channel().
report(_, Channel = #channel{host_state = undefined}) ->
    Channel;
report(Octets, Channel = #channel{host = Host}) ->
    case reports(Host) of
        true -> report_to_host(Octets, Channel);
        false -> Channel
    end.

report_to_host(Octets, Channel = #channel{host = Host, host_state = HostState, traffic = Traffic}) ->
    Counters = maps:merge(Octets, stats(Channel)),
    {Operations, NTraffic} = nats_gateway_traffic:take_operations(Traffic),
    Channel#channel{
        host_state = Host:report(Counters#{operations => Operations}, HostState), traffic = NTraffic
    }.

%% Something happens again after a report.
-spec resume(channel()) -> channel().
resume(Channel = #channel{traffic = Traffic}) ->
    Channel#channel{traffic = nats_gateway_traffic:resume(Traffic)}.

%% -------------------------------------------------------------------------------------------
%% Handling events

server_info(Extra, Channel = #channel{client = Client}) ->
    count({sent, info}, Channel),
    nats_gateway_system:info(Extra, max_payload(Channel), Client).

count(Kind, #channel{traffic = Traffic}) -> nats_gateway_traffic:count(Kind, 1, Traffic).

err(Line, #channel{traffic = Traffic}) -> nats_gateway_traffic:err(Line, Traffic).

%% If the client is behind, the events wait behind its earlier output.
events(Events, Out, Channel = #channel{output = Output}) ->
    case nats_gateway_output:is_behind(Output) of
        false ->
            steps(Events, 0, Out, Channel);
        true ->
            case [Reason || {close, Reason} <- Events, is_thrown_out(Reason)] of
                [Reason | _] ->
                    stop_at_once(Reason, Out, Channel);
                [] ->
                    {ok, Out, Channel#channel{output = nats_gateway_output:later(Events, Output)}}
            end
    end.

%% These reasons end the connection at once, even if the client has still to read output.
is_thrown_out(kicked) -> true;
is_thrown_out({error, discarded}) -> true;
is_thrown_out({error, takenover}) -> true;
is_thrown_out(_) -> false.

%% Does steps until there is a slice of output.
steps([], _, Out, Channel) ->
    {ok, Out, Channel};
steps(Steps, Size, Out, Channel = #channel{output = Output}) when Size >= ?SLICE ->
    {ok, Out, Channel#channel{output = nats_gateway_output:left(Steps, Output)}};
steps([Step | Steps], Size, Out, Channel) ->
    case event(Step, Out, Channel) of
        {ok, NOut, NChannel} -> steps(Steps, Size, NOut, NChannel);
        {sent, Sent, First, NOut, NChannel} -> steps(First ++ Steps, Size + Sent, NOut, NChannel);
        Stop -> Stop
    end.

event({deliver, Deliveries}, Out, Channel = #channel{devices = none}) ->
    deliver(Deliveries, Out, Channel);
event({deliver, Deliveries}, Out, Channel = #channel{devices = Devices, subscriptions = Subs}) ->
    {WithAnswers, NDevices} = nats_gateway_devices:answers(Deliveries, now_ms(), Subs, Devices),
    deliver(WithAnswers, Out, Channel#channel{devices = NDevices});
event({permitted, Deliveries}, Out, Channel) ->
    deliver_permitted(Deliveries, Out, Channel);
event(Step = {frames, Frames}, Out, Channel) ->
    send_frames(Frames, nats_gateway_delivering:bytes([Step]), [], Out, Channel);
event(resume, Out, Channel) ->
    resume(Out, Channel);
event({undeliverable, Count}, Out, Channel = #channel{traffic = Traffic}) ->
    {ok, Out, Channel#channel{traffic = nats_gateway_traffic:unroutable(Count, Traffic)}};
event({publish_rejected, _, ReplyTo, no_responders}, Out, Old) ->
    Channel = rejected(ReplyTo, Old),
    {ok, [Out | nats_gateway_publishing:no_responders(ReplyTo, answering(Channel))], Channel};
event({publish_rejected, Subject, ReplyTo, denied}, Out, Old) ->
    Channel = rejected(ReplyTo, Old),
    {ok, [Out | err(nats_gateway_ending:publish_denied(Subject), Channel)], Channel};
event({subscribe_rejected, Key, Refusal}, Out, Channel) ->
    {Refused, NChannel} = reject(Key, Refusal, Channel),
    {ok, [Out | Refused], NChannel};
event({joined, Key}, Out, Channel = #channel{subscriptions = Subs}) ->
    {ok, Out, Channel#channel{subscriptions = nats_gateway_subscriptions:joined(Key, Subs)}};
event({unsubscribed, Key}, Out, Channel = #channel{subscriptions = Subs}) ->
    {ok, Out, Channel#channel{
        subscriptions = nats_gateway_subscriptions:unsubscribed(Key, Subs)
    }};
event({added, Key}, Out, Channel) ->
    {ok, Out, add_for_other(Key, Channel)};
event({removed, Key}, Out, Channel) ->
    %% The client gets the text for a subscription that is not permitted any more.
    {Refused, NChannel} = reject(Key, denied, Channel),
    {ok, [Out | Refused], NChannel};
event({call, Request}, Out, Channel = #channel{host = Host, host_state = HostState}) ->
    {_, Events, NHostState} = Host:handle_call(Request, answers_for_host(Channel), HostState),
    {sent, 0, Events, Out, Channel#channel{host_state = NHostState}};
event(Close = {close, Reason}, Out, Channel = #channel{output = Output}) ->
    case nats_gateway_output:holds(Output) of
        false -> stop(Reason, Out, Channel);
        true -> release(Close, Out, Channel)
    end;
event(Completion, Out, Channel) ->
    completed(Completion, Out, Channel).

%% The completion of what the channel waits for.
completed({published, Rejections}, Out, Channel = #channel{waiting = #publish{} = Waiting}) ->
    #publish{pubs = Pubs, verdicts = Verdicts} = Waiting,
    NChannel = unanswerable(Pubs, Rejections, Channel),
    resume([Out | answers(Pubs, Verdicts, Rejections, NChannel)], NChannel);
completed({subscribed, ok}, Out, Channel = #channel{waiting = #subscribe{}}) ->
    resume(acknowledge(Out, Channel), Channel);
completed({subscribed, Refusal}, Out, Channel = #channel{waiting = #subscribe{key = Key}}) ->
    {Refused, NChannel} = reject(Key, Refusal, Channel),
    resume([Out | Refused], NChannel);
completed({subscribed, Answer}, Out, Channel = #channel{waiting = Device = #device{}}) ->
    Continue = fun(Rest, NOut, NChannel) ->
        subscribed_to_device(Answer, Device, Rest, NOut, NChannel)
    end,
    resume(Continue, Out, Channel);
completed({subscribed_again, Refusals}, Out, Channel = #channel{waiting = subscribe_again}) ->
    {Refused, NChannel} = reject_all(Refusals, Channel),
    resume([Out | Refused], NChannel);
completed(ready, Out, Channel = #channel{waiting = ready}) ->
    resume(Out, Channel);
completed(barrier, Out, Channel = #channel{waiting = barrier}) ->
    resume(fun pong/3, Out, Channel);
completed(barrier, Out, Channel = #channel{waiting = fence}) ->
    resume(Out, fenced(Channel));
completed(barrier, Out, Channel = #channel{waiting = #finish{reason = Reason}}) ->
    stop(Reason, Out, Channel);
completed({judged, Verdict}, Out, Channel = #channel{waiting = Waiting, todo = Todo}) ->
    #login{kind = Kind} = Waiting,
    judged_login(Verdict, Kind, Todo, Out, Channel#channel{waiting = none, todo = []});
completed({connected, Session}, Out, Channel = #channel{waiting = #connect{kind = Kind}, todo = Todo}) ->
    logged_in(Kind, Session, Todo, Out, Channel#channel{waiting = none, todo = []});
completed({refused, Reason}, Out, Channel = #channel{waiting = #connect{}}) ->
    stop(Reason, Out, Channel).

%% A request to a device that nobody has got has no answer.
rejected(_, Channel = #channel{devices = none}) ->
    Channel;
rejected(undefined, Channel) ->
    Channel;
rejected(ReplyTo, Channel = #channel{devices = Devices}) ->
    ReplyTopic = nats_gateway_nif:topic(ReplyTo, mountpoint(Channel)),
    Channel#channel{devices = nats_gateway_devices:cancel(ReplyTopic, Devices)}.

%% Adds a subscription that somebody else has made for this client.
add_for_other(Key = {Share, Filter}, Channel = #channel{subscriptions = Subs}) ->
    Subject = nats_gateway_subscribing:subject(Filter, mountpoint(Channel)),
    Added = nats_gateway_subscriptions:add_for_other(Subject, Share, Key, Subs),
    NChannel = Channel#channel{subscriptions = Added},
    case permissions(Channel) of
        none -> NChannel;
        Permissions -> set_permissions(nats_gateway_permissions:subscribed(Permissions), NChannel)
    end.

deliver(Deliveries, Out, Channel) ->
    case permissions(Channel) of
        none ->
            deliver_permitted(Deliveries, Out, Channel);
        Permissions ->
            {Permitted, NPermissions} =
                nats_gateway_delivering:permitted(Deliveries, Permissions, mountpoint(Channel)),
            deliver_permitted(Permitted, Out, set_permissions(NPermissions, Channel))
    end.

mountpoint(#channel{decoder = #decoder{mountpoint = Mountpoint}}) -> Mountpoint.

deliver_permitted(Deliveries, Out, Channel) ->
    #channel{decoder = Decoder, subscriptions = Subs, traffic = Traffic, views = Views} = Channel,
    Take = Decoder#decoder.headers andalso header_values(Channel),
    #fan_out{
        messages = Sent, bytes = Bytes, count = Count, rest = Rest, subscriptions = NSubs
    } = FanOut = nats_gateway_delivering:fan_out(Deliveries, Take, Subs),
    Messages = nats_gateway_subject_views:show(Sent, mountpoint(Channel), Views),
    Unsubscribed = unsubscribe(FanOut#fan_out.unused, Channel#channel{
        subscriptions = NSubs, traffic = nats_gateway_traffic:delivered(Sent, Count, Traffic)
    }),
    NChannel = requested(Messages, decline(lists:reverse(FanOut#fan_out.declined), Unsubscribed)),
    Then = [{permitted, Rest} || Rest =/= []],
    case Channel of
        %% nats-server answers +OK before the message that the operation causes.
        #channel{waiting = #publish{}, options = #options{verbose = true}} ->
            hold(Messages, Bytes, Then, Out, NChannel);
        #channel{waiting = #subscribe{}} ->
            hold(Messages, Bytes, Then, Out, NChannel);
        _ ->
            send_frames(Messages, Bytes, Then, Out, NChannel)
    end.

requested(Messages, Channel) ->
    case permissions(Channel) of
        none ->
            Channel;
        Permissions ->
            Mountpoint = mountpoint(Channel),
            set_permissions(
                nats_gateway_delivering:requested(Messages, Permissions, Mountpoint), Channel
            )
    end.

decline([], Channel) ->
    Channel;
decline(Declined, Channel = #channel{host = Host, host_state = HostState}) ->
    Channel#channel{host_state = Host:decline(Declined, HostState)}.

%% At a value that is not ASCII, jnats silently stops reading, until its PINGs are not answered.
header_values(#channel{client = #{connect := #{lang := <<"java">>}}}) -> ascii;
header_values(_) -> text.

%% Encodes a slice of messages. The other messages come first in the steps that follow.
send_frames(Frames, Bytes, Then, Out, Channel = #channel{sample = false}) ->
    Encoded = nats_gateway_delivering:encode(Frames, mountpoint(Channel)),
    encoded(Encoded, Bytes, Then, Out, Channel);
send_frames(Frames, Bytes, Then, Out, Channel = #channel{sample = true}) ->
    Encoded = nats_gateway_delivering:encode_timed(Frames, mountpoint(Channel)),
    encoded(Encoded, Bytes, Then, Out, Channel#channel{sample = false}).

encoded({Encoded, TooLong, Rest}, Bytes, Then, Out, Channel = #channel{traffic = Traffic}) ->
    NChannel = Channel#channel{traffic = nats_gateway_traffic:too_long(TooLong, Traffic)},
    case Rest of
        [] -> {sent, Bytes, Then, [Out | Encoded], NChannel};
        _ -> {sent, ?SLICE, [{frames, Rest} | Then], [Out | Encoded], NChannel}
    end.

hold(Messages, Bytes, Then, Out, Channel = #channel{output = Output}) ->
    {sent, 0, Then, Out, Channel#channel{
        output = nats_gateway_output:hold(Messages, Bytes, Output)
    }}.

%% -------------------------------------------------------------------------------------------
%% Timers (the connection keeps them)

-spec handle_timeout(Timer, channel()) -> result() when
    Timer :: heartbeat | heartbeat_wait | authentication | idle | login | devices.
handle_timeout(Timer, Channel) -> with_next(timeout(Timer, Channel)).

timeout(devices, Channel = #channel{devices = none}) ->
    {ok, [], Channel};
timeout(devices, Channel = #channel{devices = Devices}) ->
    {Unused, Ms, NDevices} = nats_gateway_devices:unused(now_ms(), Devices),
    ok = start_devices_timer(Ms),
    {ok, [], unsubscribe_from_devices(Unused, Channel#channel{devices = NDevices})};
timeout(login, Channel = #channel{grant = #grant{deadline = {_, Reason}}}) ->
    stop_at_once(Reason, [], Channel);
timeout(heartbeat, Channel = #channel{traffic = Traffic}) ->
    count({sent, ping}, Channel),
    {ok, ?PING, Channel#channel{traffic = nats_gateway_traffic:pinged(Traffic)}};
timeout(heartbeat_wait, Channel) -> stop_at_once(stale_connection, [], Channel);
timeout(_, Channel = #channel{session = Session}) when Session =/= undefined ->
    {ok, [], Channel};
%% The client has done its part. The broker causes the delay, or others do whose passwords are being
%% compared first.
timeout(_, Channel = #channel{waiting = Waiting}) when Waiting =/= none ->
    {ok, [], Channel};
timeout(authentication, Channel) -> stop(authentication_timeout, [], Channel);
timeout(idle, Channel) -> stop(idle_timeout, [], Channel).
