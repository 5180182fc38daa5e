%% What is known of the broker, shared by all connections to it: whether it is reachable, which
%% packets it hangs up on, in what it cannot be trusted, and what has been logged about it.
%%
%% If the gateway lets a client in only to close it, the client may wait long before it tries again
%% (nats.js: 20 s). So the gateway looks for the broker before it sends INFO. One connection, which
%% is closed again, answers for all clients that come at that time: a client that has not logged in
%% uses none of the broker's connections. The results of logins count as answers too, so a busy
%% gateway does not look for the broker at all.
-module(nats_gateway_upstream).

-behaviour(gen_server).

-export([child_spec/0]).
-export([start_link/0]).
-export([available/1]).
-export([check/2]).
-export([explain/1]).
-export([open/2]).
-export([accepted/2]).
-export([refused/3]).
-export([lost/1]).
-export([hung_up/4]).
-export([learned/2]).
-export([note/3]).
-export([probe/1]).
-export([probed/2]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2, format_status/1]).

-include_lib("kernel/include/logger.hrl").

-export_type([upstream/0]).

%% A part of `nats_gateway_config:config()'.
-type upstream() :: #{
    host := string() | inet:ip_address(),
    port := inet:port_number(),
    tls := none | [ssl:tls_client_option()],
    connect_timeout := pos_integer(),
    atom() => term()
}.

%% Why a connection did not become a login: the reason code of CONNACK, or why there was none.
-type refusal() ::
    byte() | no_answer | closed | protocol_error | nats_gateway_mqtt_nif:decode_error().
-export_type([refusal/0]).

%% The limits that CONNACK named.
-type facts() :: #{maximum_packet_size => pos_integer()}.
-export_type([facts/0]).

%% Why there was no connection at all.
-type unreachable() :: timeout | crashed | inet:posix() | {tls_alert, term()} | term().

-type address() :: {string() | inet:ip_address(), inet:port_number()}.

-record(broker, {
    %% when the last check found it reachable or not: milliseconds of monotonic time
    checked = never :: never | integer(),
    reachable = true :: true | {false, unreachable()},
    facts = #{} :: facts(),
    %% the probe that is under way, and the callers that wait for it
    probe :: undefined | reference(),
    waiting = [] :: [gen_server:from()],
    %% problems that were logged and are not over, with the time of their beginning
    troubles = #{} :: #{unreachable | refusal() => integer()},
    %% when each subject was last logged
    logged = #{} :: #{term() => integer()},
    hangups = nats_gateway_hangups:new() :: nats_gateway_hangups:hangups(),
    %% the broker's quirks, the process that finds them out, and the callers that wait for them
    quirks = unknown :: unknown | [nats_gateway_probe:quirk()],
    attempts = 0 :: non_neg_integer(),
    prober :: undefined | reference(),
    curious = [] :: [gen_server:from()]
}).

%% How long an answer holds. A broker that has come back must be noticed soon.
-define(REACHABLE_MS, 1000).
-define(UNREACHABLE_MS, 100).

%% How long `check/2' waits.
-define(CHECK_MS, 1000).

%% The time between two log lines about the same refusal, however often logins succeed in between.
-define(TELL_AGAIN_MS, 10000).

%% How many logins try to find out the broker's quirks if the broker denies them what is needed for
%% that.
-define(MAX_ATTEMPTS, 5).

-spec child_spec() -> supervisor:child_spec().
child_spec() -> #{id => ?MODULE, start => {?MODULE, start_link, []}}.

%% Settings of the upstream may hold the password of a key.
-spec start_link() -> {ok, pid()} | {error, term()}.
start_link() -> nats_gateway_guard:start_link({local, ?MODULE}, ?MODULE, []).

%% Whether the broker can be reached, and what the last login learned about it. Takes up to the
%% connect timeout.
-spec available(upstream()) -> {true, facts()} | false.
available(Upstream) ->
    case gen_server:call(?MODULE, {available, Upstream, ?REACHABLE_MS}, infinity) of
        {true, Facts} -> {true, Facts};
        {false, _} -> false
    end.

%% The same for those who watch the gateway: they do not wait longer than a second, and do not have a
%% connection made if the broker was there in the last `MaxAgeMs'. Some brokers log each connection
%% that ends without a word.
-spec check(upstream(), MaxAgeMs :: pos_integer()) -> ok | {error, unreachable()}.
check(Upstream, MaxAge) ->
    try gen_server:call(?MODULE, {available, Upstream, MaxAge}, ?CHECK_MS) of
        {true, _} -> ok;
        {false, Reason} -> {error, Reason}
    catch
        exit:{timeout, _} -> {error, timeout}
    end.

%% The reason in words. Only the end of OTP's text about an alert is useful here.
-spec explain(unreachable()) -> iodata().
explain({tls_alert, {_, Text}}) ->
    ["TLS: ", lists:join(" ", string:lexemes(lists:last(string:split(Text, "Fatal - ")), " \n"))];
explain(timeout) ->
    "no answer";
explain(closed) ->
    "closed by the broker: does it speak TLS?";
explain(Reason) when is_atom(Reason) ->
    inet:format_error(Reason);
explain(Reason) ->
    io_lib:format("~0p", [Reason]).

%% Opens a connection to the broker for the calling process.
-spec open(upstream(), timeout()) ->
    {ok, nats_gateway_transport:socket()} | {error, unreachable}.
open(Upstream, Timeout) ->
    case connect(Upstream, Timeout) of
        {ok, Socket} ->
            report(reached, Upstream),
            {ok, Socket};
        {error, Reason} ->
            report({unreachable, Reason}, Upstream),
            {error, unreachable}
    end.

connect(#{host := Host, port := Port, tls := Tls}, Timeout) ->
    nats_gateway_transport:connect({Host, Port}, Tls, Timeout).

%% The broker has accepted a login.
-spec accepted(facts(), upstream()) -> ok.
accepted(Facts, Upstream) -> report({accepted, Facts}, Upstream).

%% The broker does not accept logins, and this is not the client's fault. `Details' are for the log.
-spec refused(refusal(), Details :: #{atom() => term()}, upstream()) -> ok.
refused(Refusal, Details, Upstream) -> report({refused, Refusal, Details}, Upstream).

%% The broker has ended a connection: it may be gone.
-spec lost(upstream()) -> ok.
lost(Upstream) -> report(lost, Upstream).

%% The same, in the middle of a session with packets under way.
-spec hung_up(
    nats_gateway_hangups:key(),
    blamed | closed | closed_again,
    unknown | {nats_gateway_hangups:packet(), Topic :: binary()},
    upstream()
) -> ok.
hung_up(Key, Evidence, Suspect, Upstream) -> report({hung_up, Key, Evidence, Suspect}, Upstream).

%% What such a client must not do again. If this process does not run, nothing is known.
-spec learned(nats_gateway_hangups:key(), upstream()) -> none | nats_gateway_hangups:learned().
learned(Key, Upstream) ->
    case whereis(?MODULE) of
        undefined -> none;
        Server -> gen_server:call(Server, {learned, Key, address(Upstream)}, infinity)
    end.

%% Logs a warning, at most once in 10 s for each subject.
-spec note(Subject :: term(), logger:report(), upstream()) -> ok.
note(Subject, Report, Upstream) -> report({note, Subject, Report}, Upstream).

%% The quirks of a broker that has accepted a login. `probe' means that nobody knows them: the
%% calling process has to find out and report them, and others wait for that.
-spec probe(upstream()) -> {known, [nats_gateway_probe:quirk()]} | probe.
probe(#{probe := false}) ->
    {known, []};
probe(Upstream) ->
    case whereis(?MODULE) of
        undefined -> {known, []};
        Server -> gen_server:call(Server, {probe, address(Upstream)}, infinity)
    end.

-spec probed([nats_gateway_probe:quirk()] | inconclusive | hung_up, upstream()) -> ok.
probed(Outcome, Upstream) -> report({probed, Outcome}, Upstream).

report(What, Upstream) -> gen_server:cast(?MODULE, {report, What, address(Upstream)}).

-spec address(upstream()) -> address().
address(#{host := Host, port := Port}) -> {Host, Port}.

%% -------------------------------------------------------------------------------------------

init([]) -> {ok, #{}}.

handle_call({available, Upstream, MaxAge}, From, Brokers) ->
    Address = address(Upstream),
    Broker = broker(Address, Brokers),
    case is_known(Broker, MaxAge, now_ms()) of
        true ->
            {reply, answer(Broker), Brokers};
        false ->
            #broker{waiting = Waiting} = Probed = probe(Upstream, Broker),
            {noreply, Brokers#{Address => Probed#broker{waiting = [From | Waiting]}}}
    end;
handle_call({probe, Address}, From = {Pid, _}, Brokers) ->
    case broker(Address, Brokers) of
        #broker{quirks = Quirks} when is_list(Quirks) ->
            {reply, {known, Quirks}, Brokers};
        Broker = #broker{prober = undefined, attempts = Attempts} ->
            Prober = monitor(process, Pid),
            NBroker = Broker#broker{prober = Prober, attempts = Attempts + 1},
            {reply, probe, Brokers#{Address => NBroker}};
        Broker = #broker{curious = Curious} ->
            {noreply, Brokers#{Address => Broker#broker{curious = [From | Curious]}}}
    end;
handle_call({learned, Key, Address}, _, Brokers) ->
    #broker{hangups = Hangups} = broker(Address, Brokers),
    {reply, nats_gateway_hangups:learned(Key, now_ms(), Hangups), Brokers}.

handle_cast({report, What, Address}, Brokers) ->
    {noreply, Brokers#{Address => handle_report(What, Address, broker(Address, Brokers))}}.

handle_info({'DOWN', Ref, process, _, Result}, Brokers) ->
    NBrokers = maps:map(
        fun(Address, Broker) -> process_down(Ref, Result, Address, Broker) end, Brokers
    ),
    {noreply, NBrokers};
handle_info(_, Brokers) ->
    {noreply, Brokers}.

process_down(Probe, Result, Address, Broker = #broker{probe = Probe, waiting = Waiting}) ->
    NBroker = handle_report(probed(Result), Address, Broker),
    [gen_server:reply(From, answer(NBroker)) || From <- Waiting],
    NBroker#broker{probe = undefined, waiting = []};
process_down(Prober, _, Address, Broker = #broker{prober = Prober}) ->
    handle_report({probed, inconclusive}, Address, Broker);
process_down(_, _, _, Broker) ->
    Broker.

terminate(_, _) -> ok.

format_status(Status) -> Status.

answer(#broker{reachable = true, facts = Facts}) -> {true, Facts};
answer(#broker{reachable = {false, Reason}}) -> {false, Reason}.

broker(Address, Brokers) -> maps:get(Address, Brokers, #broker{}).

is_known(#broker{checked = never}, _, _) -> false;
is_known(#broker{checked = At, reachable = true}, MaxAge, Now) -> Now - At < MaxAge;
is_known(#broker{checked = At, reachable = {false, _}}, _, Now) -> Now - At < ?UNREACHABLE_MS.

probe(Upstream = #{connect_timeout := Timeout}, Broker = #broker{probe = undefined}) ->
    {_, Probe} = spawn_monitor(fun() -> exit({probed, look_for(Upstream, Timeout)}) end),
    Broker#broker{probe = Probe};
probe(_, Broker) ->
    Broker.

look_for(Upstream, Timeout) ->
    case connect(Upstream, Timeout) of
        {ok, Socket} -> nats_gateway_transport:close(Socket);
        {error, Reason} -> {error, Reason}
    end.

probed({probed, ok}) -> reached;
probed({probed, {error, Reason}}) -> {unreachable, Reason};
probed(_) -> {unreachable, crashed}.

handle_report(lost, _, Broker) ->
    Broker#broker{checked = never};
handle_report({hung_up, Key, Evidence, Suspect}, Address, Broker = #broker{hangups = Hangups}) ->
    {Packet, NHangups} = suspect(Key, Evidence, Suspect, Hangups),
    Packet =/= none andalso
        ?LOG_WARNING(#{msg => upstream_hangs_up_on_topic, upstream => Address, topic => Packet}),
    Broker#broker{checked = never, hangups = NHangups};
handle_report(reached, Address, Broker) ->
    end_troubles([unreachable], Address, Broker#broker{checked = now_ms(), reachable = true});
handle_report({unreachable, Reason}, Address, Broker) ->
    %% When the broker comes back, it may be another one.
    NBroker = Broker#broker{
        checked = now_ms(), reachable = {false, Reason}, quirks = unknown, attempts = 0, facts = #{}
    },
    begin_trouble(unreachable, upstream_connect_failed, #{reason => Reason}, Address, NBroker);
handle_report({accepted, Facts}, Address, Broker = #broker{troubles = Troubles}) ->
    NBroker = Broker#broker{checked = now_ms(), reachable = true, facts = Facts},
    end_troubles(maps:keys(Troubles), Address, NBroker);
handle_report({probed, _}, _, Broker = #broker{prober = undefined}) ->
    Broker;
handle_report({probed, Outcome}, Address, Broker = #broker{prober = Prober, curious = Curious}) ->
    true = demonitor(Prober, [flush]),
    NBroker = remember_quirks(Outcome, Address, Broker),
    Quirks =
        case NBroker of
            #broker{quirks = unknown} -> [];
            #broker{quirks = Known} -> Known
        end,
    [gen_server:reply(From, {known, Quirks}) || From <- Curious],
    NBroker#broker{prober = undefined, curious = []};
handle_report({note, Subject, Report}, Address, Broker) ->
    case was_logged_lately(Subject, Broker) of
        {false, NBroker} ->
            ?LOG_WARNING(Report#{upstream => Address}),
            NBroker;
        {true, NBroker} ->
            NBroker
    end;
handle_report({refused, Refusal, Details}, Address, Broker) ->
    case was_logged_lately(Refusal, Broker) of
        {false, NBroker} -> begin_trouble(Refusal, upstream_refused, Details, Address, NBroker);
        {true, NBroker} -> NBroker
    end.

%% Whether the subject was logged not long ago. If not, the caller logs it now.
was_logged_lately(Subject, Broker = #broker{logged = Logged}) ->
    Now = now_ms(),
    case Logged of
        #{Subject := At} when Now - At < ?TELL_AGAIN_MS -> {true, Broker};
        #{} -> {false, Broker#broker{logged = Logged#{Subject => Now}}}
    end.

remember_quirks([], _, Broker) ->
    Broker#broker{quirks = []};
remember_quirks(Quirks, Address, Broker) when is_list(Quirks) ->
    ?LOG_WARNING(#{msg => upstream_has_quirks, upstream => Address, quirks => Quirks}),
    Broker#broker{quirks = Quirks};
remember_quirks(inconclusive, _, Broker = #broker{attempts = Attempts}) when
    Attempts < ?MAX_ATTEMPTS
->
    Broker;
remember_quirks(Outcome, Address, Broker) ->
    ?LOG_NOTICE(#{msg => upstream_was_not_probed, upstream => Address, reason => Outcome}),
    Broker#broker{quirks = []}.

%% Also returns the topic if it is refused from now on.
suspect(Key, Evidence, unknown, Hangups) ->
    {none, nats_gateway_hangups:hung_up(Key, Evidence, unknown, now_ms(), Hangups)};
suspect(Key, Evidence, {Packet, Topic}, Hangups) ->
    NHangups = nats_gateway_hangups:hung_up(Key, Evidence, Packet, now_ms(), Hangups),
    case nats_gateway_hangups:learned(Key, now_ms(), NHangups) of
        #{refused := #{Packet := true}} -> {Topic, NHangups};
        #{} -> {none, NHangups}
    end.

%% Logs one line when a problem begins, and one when it ends.
begin_trouble(Trouble, _, _, _, Broker = #broker{troubles = Troubles}) when
    is_map_key(Trouble, Troubles)
->
    Broker;
begin_trouble(Trouble, Message, Details, Address, Broker = #broker{troubles = Troubles}) ->
    ?LOG_WARNING(Details#{msg => Message, upstream => Address}),
    Broker#broker{troubles = Troubles#{Trouble => now_ms()}}.

end_troubles(Names, Address, Broker = #broker{troubles = Troubles}) ->
    case maps:with(Names, Troubles) of
        Over when map_size(Over) =:= 0 ->
            Broker;
        Over ->
            Seconds = (now_ms() - lists:min(maps:values(Over))) div 1000,
            ?LOG_NOTICE(#{msg => upstream_is_back, upstream => Address, after_seconds => Seconds}),
            Broker#broker{troubles = maps:without(Names, Troubles)}
    end.

now_ms() -> erlang:monotonic_time(millisecond).
