%% What a login may publish and subscribe to. The decisions are those of nats-server.
%%
%% Subjects are compared before they are mapped to topics, in the spelling that deliveries have. A
%% deny has precedence. nats-server lets some things pass that its own rules forbid. This module
%% does not:
%% - `foo.*' does not allow a SUB to `foo.>', which would get `foo.a.b';
%% - a denied subject is filtered at delivery for every wildcard subscription, not only if the
%%   subscription covers all that is denied;
%% - a denied subject is also denied to a queue group, whatever other queue entries there are.
-module(nats_gateway_permissions).

-export([new/1]).
-export([publish/3]).
-export([targets/1]).
-export([subscribe/3]).
-export([subscribed/1]).
-export([filters/1]).
-export([deliver/2]).
-export([tracks_replies/1]).
-export([requested/3]).

-export_type([rules/0, subjects/0, responses/0, permissions/0]).

%% Entries for subscribing are `subject' or `subject queue'.
-type subjects() :: #{allow := all | [binary()], deny := [binary()]}.

%% How many answers to one request are allowed, and for how many milliseconds after it.
-type responses() :: #{max := pos_integer() | infinity, expires := pos_integer() | infinity}.

%% `outer' rules apply as well: these rules allow nothing that the outer rules do not allow.
-type rules() :: #{
    publish := subjects(),
    subscribe := subjects(),
    allow_responses := undefined | responses(),
    outer => rules()
}.

%% Subjects without wildcards are looked up. The patterns are tried one by one.
-type set() :: {Literals :: #{binary() => []}, Patterns :: [binary()]}.

-record(permissions, {
    publish_allow :: all | set(),
    publish_deny :: set(),
    subscribe_allow :: all | {set(), [{Subject :: binary(), Queue :: binary()}]},
    subscribe_deny :: {set(), [{binary(), binary()}]},
    responses :: undefined | responses(),
    outer = none :: none | permissions(),
    %% whether a wildcard subscription could deliver something that is denied
    filters = false :: boolean(),
    %% recent verdicts, if finding them needs patterns to be tried
    published = #{} :: #{binary() => boolean()},
    delivered = #{} :: #{binary() => boolean()},
    %% reply subjects of requests: the recent ones, and those before
    young = #{} :: replies(),
    old = #{} :: replies()
}).

-type replies() :: #{binary() => {At :: integer(), Answers :: non_neg_integer()}}.

-opaque permissions() :: #permissions{}.

%% A full cache is emptied. It is of no use to clients that publish to more subjects.
-define(MAX_VERDICTS, 256).
%% The size of each of the two generations. nats-server prunes at 4096.
-define(MAX_REPLIES, 2048).

-spec new(rules()) -> none | permissions().
new(Rules = #{outer := OuterRules}) ->
    case {new(maps:remove(outer, Rules)), new(OuterRules)} of
        {none, Outer} -> Outer;
        {P, Outer} -> P#permissions{outer = Outer}
    end;
new(#{
    publish := #{allow := all, deny := []},
    subscribe := #{allow := all, deny := []},
    allow_responses := undefined
}) ->
    none;
new(#{publish := Publish, subscribe := Subscribe, allow_responses := Responses}) ->
    #{allow := PublishAllow, deny := PublishDeny} = Publish,
    #{allow := SubscribeAllow, deny := SubscribeDeny} = Subscribe,
    #permissions{
        publish_allow = allow(PublishAllow, Responses),
        publish_deny = set(PublishDeny),
        subscribe_allow =
            case SubscribeAllow of
                all -> all;
                _ -> queues(SubscribeAllow)
            end,
        subscribe_deny = queues(SubscribeDeny),
        responses = Responses
    }.

%% If there is a rule for answers and no rule for publishing, the login may publish only answers.
allow(all, undefined) -> all;
allow(all, _) -> set([]);
allow(Subjects, _) -> set(Subjects).

set(Entries) ->
    Subjects = [nats_gateway_nif:canonical_subject(Entry) || Entry <- Entries],
    {Patterns, Literals} = lists:partition(fun has_wildcard/1, Subjects),
    {maps:from_list([{Literal, []} || Literal <- Literals]), Patterns}.

queues(Entries) ->
    Split = [binary:split(Entry, <<" ">>) || Entry <- Entries],
    {
        set([Subject || [Subject] <- Split]),
        [{nats_gateway_nif:canonical_subject(Subject), Queue} || [Subject, Queue] <- Split]
    }.

has_wildcard(Subject) ->
    lists:any(
        fun(Token) -> Token =:= <<"*">> orelse Token =:= <<">">> end,
        binary:split(Subject, <<".">>, [global])
    ).

is_member(Subject, {Literals, Patterns}) ->
    is_map_key(Subject, Literals) orelse
        lists:any(
            fun(Pattern) -> nats_gateway_nif:subject_matches(Pattern, Subject) end, Patterns
        ).

%% -------------------------------------------------------------------------------------------
%% Publish

%% `Now' returns milliseconds of a clock that does not go back.
-spec publish(Subject :: binary(), Now :: fun(() -> integer()), permissions()) ->
    {allow | deny, permissions()}.
publish(Subject, Now, P = #permissions{outer = none}) ->
    publish_itself(Subject, Now, P);
publish(Subject, Now, P) ->
    both(
        fun(Outer) -> publish(Subject, Now, Outer) end,
        fun(Own) -> publish_itself(Subject, Now, Own) end,
        P
    ).

publish_itself(Subject, Now, P) ->
    case may_publish(Subject, P) of
        {true, NP} -> {allow, NP};
        {false, NP = #permissions{responses = undefined}} -> {deny, NP};
        {false, NP} -> answer(Subject, Now(), NP)
    end.

both(OfOuter, OfItself, P = #permissions{outer = Outer}) ->
    case OfOuter(Outer) of
        {allow, NOuter} -> OfItself(P#permissions{outer = NOuter});
        {deny, NOuter} -> {deny, P#permissions{outer = NOuter}}
    end.

may_publish(_, P = #permissions{publish_allow = all, publish_deny = {Literals, []}}) when
    map_size(Literals) =:= 0
->
    {true, P};
may_publish(Subject, P = #permissions{published = Verdicts}) ->
    case Verdicts of
        #{Subject := Verdict} ->
            {Verdict, P};
        #{} ->
            #permissions{publish_allow = Allow, publish_deny = Deny} = P,
            Verdict = lists:all(
                fun(Target) ->
                    (Allow =:= all orelse is_member(Target, Allow)) andalso
                        not is_member(Target, Deny)
                end,
                targets(Subject)
            ),
            {Verdict, P#permissions{published = remember(Subject, Verdict, Verdicts)}}
    end.

%% All subjects that a publish to this one reaches. For `$delayed.SECONDS.' EMQX publishes to the
%% subject behind it when the time is over.
-spec targets(Subject :: binary()) -> [binary()].
targets(Subject) -> delayed(nats_gateway_nif:published_subject(Subject)).

delayed(Subject = <<"$delayed.", Delayed/binary>>) ->
    case binary:split(Delayed, <<".">>) of
        [_Seconds, Target] -> [Subject | delayed(Target)];
        [_] -> [Subject]
    end;
delayed(Subject) ->
    [Subject].

remember(Subject, Verdict, Verdicts) when map_size(Verdicts) < ?MAX_VERDICTS ->
    Verdicts#{binary:copy(Subject) => Verdict};
remember(Subject, Verdict, _) ->
    #{binary:copy(Subject) => Verdict}.

%% Whether this is an answer to a request that was delivered to this client.
answer(Subject, Now, P = #permissions{young = Young, old = Old, responses = Responses}) ->
    #{max := Max, expires := Expires} = Responses,
    case Young of
        #{Subject := Request} ->
            case count(Request, Max, Expires, Now) of
                none -> {deny, P#permissions{young = maps:remove(Subject, Young)}};
                NRequest -> {allow, P#permissions{young = Young#{Subject := NRequest}}}
            end;
        #{} ->
            case Old of
                #{Subject := Request} ->
                    case count(Request, Max, Expires, Now) of
                        none -> {deny, P#permissions{old = maps:remove(Subject, Old)}};
                        NRequest -> {allow, P#permissions{old = Old#{Subject := NRequest}}}
                    end;
                #{} ->
                    {deny, P}
            end
    end.

%% An infinite limit needs no clause of its own, because atoms are greater than numbers.
count({At, Answers}, Max, Expires, Now) when Answers < Max, Now - At =< Expires ->
    {At, Answers + 1};
count(_, _, _, _) ->
    none.

%% Whether the reply subjects of deliveries must be passed to `requested/3'.
-spec tracks_replies(permissions()) -> boolean().
tracks_replies(#permissions{responses = Responses}) -> Responses =/= undefined.

%% A request with this reply subject was delivered to the client. The number of remembered requests
%% is bounded: after some thousands without an answer the oldest are forgotten.
-spec requested(ReplySubject :: binary(), Now :: integer(), permissions()) -> permissions().
requested(Reply, Now, P) ->
    case may_publish(Reply, P) of
        {true, NP} ->
            NP;
        {false, NP = #permissions{young = Young}} when map_size(Young) < ?MAX_REPLIES ->
            NP#permissions{young = Young#{binary:copy(Reply) => {Now, 0}}};
        {false, NP = #permissions{young = Young}} ->
            NP#permissions{young = #{binary:copy(Reply) => {Now, 0}}, old = Young}
    end.

%% -------------------------------------------------------------------------------------------
%% Subscribe

%% The queue entries of a subject say which queue groups may use it. With `foo' and `foo v1' in the
%% list, a plain subscription may use it, and of the groups only v1.
-spec subscribe(Subject :: binary(), QueueGroup :: undefined | binary(), permissions()) ->
    {allow | deny, permissions()}.
subscribe(Spelled, QueueGroup, P) ->
    subscribe_to(nats_gateway_nif:canonical_subject(Spelled), QueueGroup, P).

subscribe_to(Subject, QueueGroup, P = #permissions{outer = none}) ->
    subscribe_itself(Subject, QueueGroup, P);
subscribe_to(Subject, QueueGroup, P) ->
    both(
        fun(Outer) -> subscribe_to(Subject, QueueGroup, Outer) end,
        fun(Own) -> subscribe_itself(Subject, QueueGroup, Own) end,
        P
    ).

subscribe_itself(Subject, QueueGroup, P = #permissions{filters = Filters}) ->
    #permissions{subscribe_allow = Allow, subscribe_deny = Deny} = P,
    case is_allowed(Subject, QueueGroup, Allow) andalso not is_denied(Subject, QueueGroup, Deny) of
        true -> {allow, P#permissions{filters = Filters orelse must_filter(Subject, Deny)}};
        false -> {deny, P}
    end.

is_allowed(_, _, all) ->
    true;
is_allowed(Subject, undefined, {Set, _}) ->
    holds(Subject, Set);
is_allowed(Subject, QueueGroup, {Set, Queues}) ->
    case [Queue || {Pattern, Queue} <- Queues, holds_all(Pattern, Subject)] of
        [] -> holds(Subject, Set);
        Allowed -> lists:any(fun(Queue) -> is_queue(Queue, QueueGroup) end, Allowed)
    end.

is_denied(Subject, QueueGroup, {Set, Queues}) ->
    is_member(Subject, Set) orelse
        (QueueGroup =/= undefined andalso
            lists:any(
                fun({Pattern, Queue}) ->
                    nats_gateway_nif:subject_matches(Pattern, Subject) andalso
                        is_queue(Queue, QueueGroup)
                end,
                Queues
            )).

is_queue(Pattern, QueueGroup) ->
    Pattern =:= QueueGroup orelse nats_gateway_nif:subject_matches(Pattern, QueueGroup).

holds(Subject, {Literals, Patterns}) ->
    is_map_key(Subject, Literals) orelse
        lists:any(fun(Pattern) -> holds_all(Pattern, Subject) end, Patterns).

%% Whether the pattern matches everything that the subject stands for; the subject may have
%% wildcards. Only `>' stands for more than the one token that it would be taken for.
holds_all(Pattern, Subject) ->
    nats_gateway_nif:subject_matches(Pattern, Subject) andalso
        (ends_in_full_wildcard(Pattern) orelse not ends_in_full_wildcard(Subject)).

ends_in_full_wildcard(<<">">>) ->
    true;
ends_in_full_wildcard(Subject) ->
    Size = byte_size(Subject) - 2,
    case Subject of
        <<_:Size/binary, ".>">> when Size > 0 -> true;
        _ -> false
    end.

must_filter(Subject, Deny) -> denies_any(Deny) andalso has_wildcard(Subject).

denies_any({{Literals, Patterns}, _}) -> map_size(Literals) > 0 orelse Patterns =/= [].

%% Somebody else has subscribed this client. Whatever the subscription is, denied subjects are not
%% delivered.
-spec subscribed(permissions()) -> permissions().
subscribed(P = #permissions{filters = Filters, subscribe_deny = Deny, outer = Outer}) ->
    P#permissions{
        filters = Filters orelse denies_any(Deny),
        outer =
            case Outer of
                none -> none;
                _ -> subscribed(Outer)
            end
    }.

%% Whether `deliver/2' must check deliveries.
-spec filters(permissions()) -> boolean().
filters(#permissions{filters = Filters, outer = none}) -> Filters;
filters(#permissions{filters = Filters, outer = Outer}) -> Filters orelse filters(Outer).

-spec deliver(Subject :: binary(), permissions()) -> {allow | deny, permissions()}.
deliver(Subject, P = #permissions{outer = none}) ->
    deliver_itself(Subject, P);
deliver(Subject, P) ->
    both(
        fun(Outer) -> deliver(Subject, Outer) end,
        fun(Own) -> deliver_itself(Subject, Own) end,
        P
    ).

deliver_itself(Subject, P = #permissions{delivered = Verdicts, subscribe_deny = {Deny, _}}) ->
    case Verdicts of
        #{Subject := Verdict} ->
            {word(Verdict), P};
        #{} ->
            Verdict = not is_member(Subject, Deny),
            {word(Verdict), P#permissions{delivered = remember(Subject, Verdict, Verdicts)}}
    end.

word(true) -> allow;
word(false) -> deny.
