%% Decides which publishes of a client may go to the host, and which answers the client gets.
-module(nats_gateway_publishing).

-export([judge/2]).
-export([judge_request/2]).
-export([may_be_answered_here/1]).
-export([answers/4]).
-export([no_responders/2]).
-export([plain_sid/2]).
-export([invalid_subject/0]).
-export([is_reserved_filter/1]).

-include("nats_gateway.hrl").
-include("nats_gateway_channel.hrl").

-export_type([verdict/0]).

%% The channel's own verdict on a publish, before the host is asked. A request to a name that only
%% the broker publishes to has no responders, like a request to nats-server's own subjects.
-type verdict() :: pass | denied | reply_denied | no_responders.

-type permissions() :: none | nats_gateway_permissions:permissions().

-define(INVALID_PUBLISH_SUBJECT, <<"-ERR 'Invalid Publish Subject'\r\n">>).

%% With `pass' the host gets all publishes. The login's permissions come before the rules that hold
%% for everybody.
-spec judge([#pub{}], permissions()) -> pass | {[verdict()], permissions()}.
judge(Pubs, none) ->
    case lists:any(fun is_special/1, Pubs) of
        false -> pass;
        true -> {[verdict(Pub) || Pub <- Pubs], none}
    end;
judge(Pubs, Permissions) ->
    lists:mapfoldl(fun(Pub, Acc) -> permit(Pub, fun verdict/1, Acc) end, Permissions, Pubs).

%% A request that the gateway itself answers: it goes to no topic.
-spec judge_request(#pub{}, permissions()) -> {verdict(), permissions()}.
judge_request(Pub, Permissions) -> permit(Pub, fun reply_verdict/1, Permissions).

%% A publish that the gateway may answer itself is not taken together with others.
-spec may_be_answered_here(#pub{}) -> boolean().
may_be_answered_here(#pub{subject = <<"$SYS.REQ.", _/binary>>, reply_to = ReplyTo}) -> is_binary(ReplyTo);
may_be_answered_here(#pub{subject = <<"$JS.", _/binary>>}) -> true;
may_be_answered_here(#pub{subject = <<"$KV.", _/binary>>}) -> true;
may_be_answered_here(#pub{}) -> false.

permit(Pub, Verdict, none) ->
    {Verdict(Pub), none};
permit(Pub = #pub{subject = Subject}, Verdict, Permissions) ->
    case nats_gateway_permissions:publish(Subject, fun now_ms/0, Permissions) of
        {allow, NPermissions} -> {Verdict(Pub), NPermissions};
        {deny, NPermissions} -> {denied, NPermissions}
    end.

now_ms() -> erlang:monotonic_time(millisecond).

%% Finds the rare publish that needs a verdict, in one pass over the batch.
is_special(#pub{topic = invalid}) -> true;
is_special(#pub{subject = <<"$", _/binary>>}) -> true;
is_special(#pub{topic = {_, _}}) -> true;
is_special(#pub{reply_to = <<C, _/binary>>}) when C =:= $_; C =:= $$ -> true;
is_special(_) -> false.

%% The rules that hold for everybody.
verdict(Pub) ->
    case reply_verdict(Pub) of
        pass -> subject_verdict(Pub);
        Denied -> Denied
    end.

reply_verdict(#pub{reply_to = ReplyTo}) ->
    case is_reserved_reply(ReplyTo) of
        true -> reply_denied;
        false -> pass
    end.

subject_verdict(#pub{subject = Subject, topic = Topic, reply_to = ReplyTo}) ->
    case is_reserved(Subject, Topic) of
        true when is_binary(ReplyTo) -> no_responders;
        true -> denied;
        false -> pass
    end.

is_reserved(Subject = <<"$", _/binary>>, _) -> reaches_reserved(Subject);
is_reserved(Subject, {_, _}) -> reaches_reserved(Subject);
is_reserved(_, _) -> false.

reaches_reserved(Subject) ->
    lists:any(fun is_reserved_name/1, nats_gateway_permissions:targets(Subject)).

%% Names that only the broker itself may publish to (docs/architecture.md, Mapping, 3).
is_reserved_name(<<"$SYS.", _/binary>>) -> true;
is_reserved_name(<<"$share", Rest/binary>>) -> is_whole_token(Rest);
is_reserved_name(<<"$queue", Rest/binary>>) -> is_whole_token(Rest);
is_reserved_name(_) -> false.

%% docs/protocol.md section 1: reply subjects that nats-server keeps to itself.
is_reserved_reply(<<"_R_.", _/binary>>) -> true;
is_reserved_reply(<<"$JS.ACK.", _/binary>>) -> true;
is_reserved_reply(<<"$GNR.", _/binary>>) -> true;
is_reserved_reply(_) -> false.

%% Filters that have another meaning for a broker (docs/architecture.md, Mapping, 3).
-spec is_reserved_filter(binary()) -> boolean().
is_reserved_filter(<<"$share", Rest/binary>>) -> is_whole_token(Rest);
is_reserved_filter(<<"$queue", Rest/binary>>) -> is_whole_token(Rest);
is_reserved_filter(<<"$exclusive", Rest/binary>>) -> is_whole_token(Rest);
is_reserved_filter(_) -> false.

is_whole_token(<<>>) -> true;
is_whole_token(<<".", _/binary>>) -> true;
is_whole_token(_) -> false.

-spec invalid_subject() -> binary().
invalid_subject() -> ?INVALID_PUBLISH_SUBJECT.

%% The answers to a batch of publishes, in its order.
-spec answers(
    [#pub{}], [verdict()] | pass, [{pos_integer(), nats_gateway_host:rejection()}], #answering{}
) -> iodata().
answers(Pubs, pass, [], #answering{options = Options, traffic = Traffic}) when
    Options#options.verbose, not Options#options.pedantic
->
    nats_gateway_traffic:oks(length(Pubs), Traffic);
answers(Pubs, pass, Rejections, Answering) ->
    answers(Pubs, [pass || _ <- Pubs], Rejections, 1, Answering);
answers(Pubs, Verdicts, Rejections, Answering) ->
    answers(Pubs, Verdicts, Rejections, 1, Answering).

%% `Index' counts the publishes that were passed to the host.
answers([], [], [], _, _) ->
    [];
answers([Pub | Pubs], [pass | Verdicts], [{Index, Rejection} | Rejections], Index, Answering) ->
    [
        answer(Pub, Rejection, Answering)
        | answers(Pubs, Verdicts, Rejections, Index + 1, Answering)
    ];
answers([Pub | Pubs], [pass | Verdicts], Rejections, Index, Answering) ->
    [answer(Pub, pass, Answering) | answers(Pubs, Verdicts, Rejections, Index + 1, Answering)];
answers([Pub | Pubs], [Verdict | Verdicts], Rejections, Index, Answering) ->
    [answer(Pub, Verdict, Answering) | answers(Pubs, Verdicts, Rejections, Index, Answering)].

answer(Pub, Verdict, Answering) ->
    [pedantic_answer(Pub, Answering) | verdict_answer(Pub, Verdict, Answering)].

%% The message is processed even if its subject is invalid.
pedantic_answer(#pub{subject = Subject}, Answering = #answering{options = Options}) when
    Options#options.pedantic
->
    case nats_gateway_nif:valid_publish_subject(Subject) of
        true -> [];
        false -> err(?INVALID_PUBLISH_SUBJECT, Answering)
    end;
pedantic_answer(_, _) ->
    [].

verdict_answer(_, pass, Answering) ->
    ok(Answering);
verdict_answer(#pub{reply_to = ReplyTo, reply_topic = invalid}, no_responders, Answering) ->
    [ok(Answering) | no_responders(ReplyTo, Answering)];
verdict_answer(#pub{reply_to = ReplyTo, reply_topic = ReplyTopic}, no_responders, Answering) ->
    [ok(Answering) | no_responders(ReplyTo, ReplyTopic, Answering)];
verdict_answer(#pub{subject = Subject}, denied, Answering) ->
    err(nats_gateway_ending:publish_denied(Subject), Answering);
verdict_answer(#pub{subject = Subject, reply_to = ReplyTo}, {property, Header, Demand}, Answering) ->
    Line = nats_gateway_publish_properties:error_line(Subject, Header, Demand),
    Block = nats_gateway_publish_properties:status(Header, Demand),
    [err(Line, Answering) | status(ReplyTo, Block, Answering)];
verdict_answer(#pub{reply_to = ReplyTo}, reply_denied, Answering) ->
    Quoted = nats_gateway_nif:quote(ReplyTo),
    err(nats_gateway_ending:violation([<<"Publish with Reply of ">>, Quoted]), Answering).

ok(#answering{options = #options{verbose = Verbose}, traffic = Traffic}) ->
    nats_gateway_traffic:ok(Verbose, Traffic).

err(Line, #answering{traffic = Traffic}) -> nats_gateway_traffic:err(Line, Traffic).

%% The status 503 of a request. It is sent even if the reply subject is spelled differently from the
%% subject that its topic would become.
-spec no_responders(undefined | binary(), #answering{}) -> iodata().
no_responders(undefined, _) ->
    [];
no_responders(ReplyTo, Answering = #answering{mountpoint = Mountpoint}) ->
    no_responders(ReplyTo, nats_gateway_nif:topic(ReplyTo, Mountpoint), Answering).

%% Only a plain subscription of the requester gets the 503, and the 503 does not count towards its
%% max.
no_responders(ReplyTo, ReplyTopic, Answering = #answering{options = Options}) when
    Options#options.no_responders,
    is_binary(ReplyTo)
->
    #answering{subscriptions = Subs, traffic = Traffic} = Answering,
    case plain_sid(ReplyTopic, Subs) of
        undefined ->
            [];
        Sid ->
            nats_gateway_traffic:count({sent, hmsg}, 1, Traffic),
            [<<"HMSG ">>, ReplyTo, $\s, Sid, <<" 16 16\r\nNATS/1.0 503\r\n\r\n\r\n">>]
    end;
no_responders(_, _, _) ->
    [].

%% Answers a request with a header block alone. The client has sent headers, so it takes them.
status(undefined, _, _) ->
    [];
status(ReplyTo, Block, Answering = #answering{mountpoint = Mountpoint}) ->
    #answering{subscriptions = Subs, traffic = Traffic} = Answering,
    case plain_sid(nats_gateway_nif:topic(ReplyTo, Mountpoint), Subs) of
        undefined ->
            [];
        Sid ->
            nats_gateway_traffic:count({sent, hmsg}, 1, Traffic),
            Size = integer_to_binary(byte_size(Block)),
            Line = [<<"HMSG ">>, ReplyTo, $\s, Sid, $\s, Size, $\s, Size, <<"\r\n">>],
            [Line, Block, <<"\r\n">>]
    end.

%% A reply subject that is not a plain topic cannot be subscribed to.
-spec plain_sid(
    undefined | nats_gateway_nif:topic(), nats_gateway_subscriptions:subscriptions()
) -> undefined | nats_gateway_subscriptions:sid().
plain_sid(ReplyTopic, Subs) when is_binary(ReplyTopic) ->
    nats_gateway_subscriptions:plain_sid(ReplyTopic, Subs);
plain_sid(_, _) ->
    undefined.
